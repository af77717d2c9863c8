"""Downloads: repeated, through a borrowed connector, and what counts as an image."""

import ssl
import time
from typing import Any

import aiohttp
import pytest
import trustme

from elkimg_async import AsyncImages, DownloadError, Image, Limits, Timeout
from elkimg_async.local import LocalServer
from elkimg_async.sansio.signatures import is_text
from elkimg_async.transport import download
from tests.helpers.calls import SOON
from tests.helpers.raw_server import API_KEY, PNG, End, RawServer, Reply, head, response


async def image_at(raw_server: RawServer, url: str, **options: Any) -> tuple[AsyncImages, Image]:
    """Return an open client and its image, which the API names by a URL."""
    raw_server.reply_with(response({"data": [{"url": url}]}))
    client = AsyncImages(API_KEY, base_url=raw_server.base_url, **options)
    (image,) = await client.generate("a boat")
    return client, image


# --- repeated ---------------------------------------------------------------


@pytest.mark.parametrize("status", [202, 403, 404, 408, 425, 429, 500, 502, 503, 504, 520])
async def test_download_that_is_not_ready(raw_server: RawServer, status: int) -> None:
    """A transient status is retried automatically."""
    async with RawServer(response(b"not yet", status=status), response(PNG)) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            assert await image.read() == PNG
        assert len(host.requests) == 2
    assert len(raw_server.requests) == 1


@pytest.mark.parametrize(
    "first",
    [
        response(b""),
        [End.CLOSE],
        [End.RESET],
        [head(200, Content_Length="5000"), PNG, End.CLOSE],
        [head(200, Content_Length="5000"), PNG, End.RESET],
    ],
    ids=["empty", "closed", "reset", "cut", "reset-in-body"],
)
async def test_download_that_breaks_off_at_first(raw_server: RawServer, first: Reply) -> None:
    """A broken connection and an empty file are tried again."""
    async with RawServer(first, response(PNG)) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            assert await image.read() == PNG
        assert len(host.requests) == 2


@pytest.mark.parametrize("status", [204, 400, 401, 410, 451])
async def test_download_that_is_final(raw_server: RawServer, status: int) -> None:
    """Any other status ends the download at once."""
    async with RawServer(response(b"", status=status), response(PNG)) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            with pytest.raises(DownloadError) as caught:
                await image.read()
        assert caught.value.status == status
        assert len(host.requests) == 1


async def test_download_honours_retry_after(raw_server: RawServer) -> None:
    """A server's Retry-After is respected; one beyond the limit ends the download at once."""
    async with RawServer(response(b"", status=503, Retry_After="1"), response(PNG)) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            started = time.monotonic()
            assert await image.read() == PNG
            assert time.monotonic() - started >= 1.0
        host.reply_with(response(b"", status=503, Retry_After="60"))
        client, image = await image_at(
            raw_server, f"{host.origin}/b.png", timeout=Timeout(download=45)
        )
        async with client:
            started = time.monotonic()
            with pytest.raises(DownloadError, match="status 503"):
                await image.read()
            assert time.monotonic() - started < SOON


async def test_download_ends_within_its_limit(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download fails within `Timeout.download`, and that of an absent file earlier."""
    async with RawServer(response(b"", status=404)) as host:
        client, image = await image_at(
            raw_server, f"{host.origin}/a.png", timeout=Timeout(download=1)
        )
        async with client:
            started = time.monotonic()
            with pytest.raises(DownloadError, match="status 404"):
                await image.read()
            assert time.monotonic() - started < SOON
            assert len(host.requests) == 2
        monkeypatch.setattr(download, "NOT_READY", 0.1)
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            with pytest.raises(DownloadError, match="status 404"):
                await image.read()
            assert len(host.requests) == 3


async def test_download_follows_a_redirect_again(raw_server: RawServer) -> None:
    """A repeated download begins at the URL that the API named."""
    replies: list[Reply] = [
        response(b"", status=302, Location="/old"), response(b"", status=404),
        response(b"", status=302, Location="/new"), response(PNG),
    ]  # fmt: skip
    async with RawServer(*replies) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a.png")
        async with client:
            assert await image.read() == PNG
        assert [request.target for request in host.requests] == ["/a.png", "/old", "/a.png", "/new"]


# --- a borrowed connector ---------------------------------------------------


async def test_download_uses_the_borrowed_certificates(raw_server: RawServer) -> None:
    """A private authority that the borrowed session trusts is trusted for downloads."""
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    async with (
        LocalServer(api_key=API_KEY, light=True, delay=0, ssl_context=theirs) as server,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ours), headers={"X-Secret": "hush"}
        ) as session,
        AsyncImages(API_KEY, base_url=server.base_url, session=session) as client,
    ):
        (image,) = await client.generate("a boat", model="dall-e-3", response_format="url")
        assert image.url is not None
        assert image.url.startswith("https://")
        assert await image.read()
    assert not session.connector  # closed by its owner


async def test_download_leaves_the_borrowed_session_open(raw_server: RawServer) -> None:
    """The borrowed session stays open, and keeps its cookies and headers to itself."""
    async with (
        RawServer(response(PNG)) as host,
        aiohttp.ClientSession(
            headers={"Authorization": "Bearer hush"}, cookie_jar=aiohttp.CookieJar(unsafe=True)
        ) as session,
    ):
        session.cookie_jar.update_cookies({"secret": "hush"})
        client, image = await image_at(raw_server, f"{host.origin}/a.png", session=session)
        async with client:
            assert await image.read() == PNG
        assert not session.closed
        assert session.connector is not None
        assert not session.connector.closed
        assert "hush" not in str(host.requests)
        assert API_KEY not in str(host.requests)
        async with session.get(f"{host.origin}/b.png") as downloaded:
            assert await downloaded.read() == PNG


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/a.png", "http://localhost:{}/a.png", "http://[::1]:{}/a.png"]
)
@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
async def test_download_from_a_private_address(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch, url: str, borrowed: bool
) -> None:
    """A public API cannot make its clients request a private address."""

    async def public(_: str) -> bool:
        return False if "127.0.0.1" in _ and str(raw_server.port) in _ else await is_private(_)

    is_private = download._is_private
    monkeypatch.setattr(download, "_is_private", public)
    async with RawServer(response(PNG)) as host, aiohttp.ClientSession() as session:
        client, image = await image_at(
            raw_server, url.format(host.port), session=session if borrowed else None
        )
        async with client:
            with pytest.raises(DownloadError, match="private"):
                await image.read()
        assert host.accepted == 0
        client, image = await image_at(
            raw_server,
            f"http://127.0.0.1:{host.port}/a.png",
            session=session if borrowed else None,
            limits=Limits(private_downloads=True),
        )
        async with client:
            assert await image.read() == PNG


# --- what is an image -------------------------------------------------------

IMAGES = {
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "jxl": b"\xff\x0a\xfa\x7f\x01\x90",
    "jxl container": b"\0\0\0\x0cJXL \r\n\x87\n",
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0",
    "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0",
    "unknown": b"QOIX\0\0\0\x10\0\0\0\x10\3\0",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "svg after a declaration": b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg></svg>',
    "svg after a comment": b"<!-- made by <html> hand -->\n<!-- twice --><svg width='1'/>",
    "svg after a doctype": b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" '
    b'"svg11.dtd" '
    b'[<!ENTITY a "b">]> <svg/>',
    "svg with a prefix": b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>",
    "svg in utf-16": "<svg/>".encode("utf-16"),
    "svg after words": b"Here it is: <svg xmlns='http://www.w3.org/2000/svg'/>",
    "pbm": b"P1 1 1 0",
}
TEXTS = {
    "html": b"<!doctype html><title>Sign in</title>",
    "html after a comment": b"<!-- x -->\n<HTML lang=en><svg/></HTML>",
    "html in latin-1": b"<html><p>caf\xe9</p></html>",
    "json": b'{"error": "expired"}',
    "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "text": "Zugriff verweigert: schlüssel\r\n".encode(),
    "long text": b"word " * 40_000,
    "one character": b"x",
    "utf-16": "not found".encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
async def test_download_of_any_image(raw_server: RawServer, content: bytes) -> None:
    """Content that is not clearly text is delivered, known or not."""
    assert not is_text(content)
    async with RawServer(response(content, content_type="text/plain")) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a")
        async with client:
            assert await image.read() == content


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS.keys())
async def test_download_of_text(raw_server: RawServer, content: bytes) -> None:
    """Text and web pages are not images, whatever their content type."""
    assert is_text(content)
    async with RawServer([*response(content, content_type="image/png"), End.CLOSE]) as host:
        client, image = await image_at(raw_server, f"{host.origin}/a")
        async with client:
            with pytest.raises(DownloadError, match="text, not an image"):
                await image.read()
