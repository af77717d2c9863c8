"""Reading images that are only a URL: downloads, redirects, limits and private addresses."""

import asyncio
import pickle
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.abc
import pytest

from elkimg_async import (
    AsyncImages,
    DownloadError,
    Image,
    ImagesResponse,
    Limits,
    Timeout,
)
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    RawServer,
    Reply,
    head,
    open_stream,
    response,
)


@pytest.fixture
async def host() -> AsyncIterator[RawServer]:
    """An image host, apart from the API."""
    async with RawServer(response(PNG, content_type="image/png")) as host:
        yield host


async def image_at(url: str, **options: Any) -> tuple[AsyncImages, Image]:
    """Yield an open client, and an image of its API with this URL."""
    async with RawServer(response({"data": [{"url": url}]})) as api:
        client = AsyncImages(API_KEY, base_url=api.base_url, **options)
        try:
            (image,) = await client.generate("a boat")
        except BaseException:
            await client.aclose()
            raise
    return client, image


async def failure_of(host: RawServer, reply: Reply, **options: Any) -> DownloadError:
    """Return the error of reading an image whose host returns this reply."""
    host.reply_with(reply)
    client, image = await image_at(f"{host.origin}/a.png?signature=hush", **options)
    async with client:
        with pytest.raises(DownloadError) as caught:
            await image.read()
    error = caught.value
    assert image.content is None
    assert error.billing == "billed"
    assert error.url == f"{host.origin}/a.png"
    assert "hush" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


async def test_read_bytes() -> None:
    """Bytes that are present are returned at once."""
    assert await Image(PNG).read() == PNG


async def test_read_a_url(host: RawServer) -> None:
    """The URL is fetched only at the first `read`, and without the API key."""
    client, image = await image_at(f"{host.origin}/a.png?signature=1%2F2")
    async with client:
        assert host.requests == []
        assert await image.read() == await image.read() == image.content == PNG
        assert image.media_type == "image/png"
    (request,) = host.requests
    assert request.method == "GET"
    assert "authorization" not in request.headers
    assert "idempotency-key" not in request.headers
    assert API_KEY not in repr(request)


async def test_read_a_signed_url(host: RawServer) -> None:
    """The URL is requested unchanged: escapes that belong to a signature stay."""
    target = "/a%20boat/b.png?sig=a%2Bb%2Fc%3D%3D&se=2030-01-01T00%3A00%3A00Z"
    client, image = await image_at(host.origin + target)
    async with client:
        await image.read()
    assert host.requests[0].target == target


async def test_read_without_the_clients_headers(host: RawServer) -> None:
    """Headers added for the API are not sent to the image host."""
    client, image = await image_at(f"{host.origin}/a.png", headers={"X-Team": "hush"})
    async with client:
        await image.read()
    assert "x-team" not in host.requests[0].headers


async def test_read_concurrently(host: RawServer) -> None:
    """Tasks that read the same image at once share one download."""
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        contents = await asyncio.gather(*(image.read() for _ in range(10)))
    assert contents == [PNG] * 10
    assert len(host.requests) == 1


async def test_save_a_url(host: RawServer, tmp_path: Path) -> None:
    """`save` downloads an image that is only a URL."""
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        assert (await image.save(tmp_path / "boat")).read_bytes() == PNG


async def test_read_again_after_a_failure(host: RawServer) -> None:
    """A failed download can be tried again with the same image."""
    host.reply_with(response(b"gone", status=410), response(PNG))
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        with pytest.raises(DownloadError):
            await image.read()
        assert await image.read() == PNG


async def test_cancelled_read_can_be_repeated(host: RawServer) -> None:
    """A cancelled read leaves the image unchanged and no connection open."""
    host.reply_with([End.HOLD], response(PNG))
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        task = asyncio.create_task(image.read())
        await host.wait_until(lambda: len(host.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await host.wait_disconnected()
        assert await image.read() == PNG


async def test_read_over_the_local_server(tmp_path: Path) -> None:
    """A dall-e image of the local server is a URL and is read from there."""
    async with (
        LocalServer(light=True, delay=0) as server,
        AsyncImages(server.api_key, base_url=server.base_url) as client,
    ):
        (image,) = await client.generate("a boat", model="dall-e-3")
        assert image.content is None
        assert image.url is not None
        assert image.revised_prompt is not None
        assert (await image.save(tmp_path / "boat")).suffix == ".png"
        assert image.to_pil().size == (1024, 1024)
        assert server.requests[-1].method == "GET"
        assert "authorization" not in server.requests[-1].headers


@pytest.mark.parametrize(
    "location", ["/b.png", "b.png", "//{host}/b.png", "http://{host}/b.png?x=1"]
)
async def test_redirect(host: RawServer, location: str) -> None:
    """Redirects of the image host are followed, relative ones too."""
    address = location.format(host=host.origin.removeprefix("http://"))
    host.reply_with([head(302, Location=address, Content_Length="0")], response(PNG))
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        assert await image.read() == PNG
    assert [request.target.partition("?")[0] for request in host.requests] == ["/a.png", "/b.png"]


async def test_redirects_without_end(host: RawServer) -> None:
    """The sixth redirect is an error."""
    host.reply_with([head(302, Location="/a.png", Content_Length="0")])
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        with pytest.raises(DownloadError, match="redirects more than 5 times"):
            await image.read()
    assert len(host.requests) == 6


async def test_redirect_to_a_broken_address(host: RawServer) -> None:
    """A redirect to an invalid URL is a DownloadError too."""
    host.reply_with([head(302, Location="http://[::1/b.png", Content_Length="0")])
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        with pytest.raises(DownloadError) as caught:
            await image.read()
    assert caught.value.billing == "billed"


async def test_redirect_to_a_file(host: RawServer, tmp_path: Path) -> None:
    """A redirect to something that is not HTTP is not followed."""
    (tmp_path / "boat.png").write_bytes(PNG)
    place = (tmp_path / "boat.png").as_uri()
    host.reply_with([head(302, Location=place, Content_Length="0")])
    client, image = await image_at(f"{host.origin}/a.png")
    async with client:
        with pytest.raises(DownloadError, match="neither http nor https") as caught:
            await image.read()
    assert caught.value.billing == "billed"


@pytest.mark.parametrize("status", [204, 400, 403, 404, 410, 500, 503])
async def test_download_with_an_error_status(host: RawServer, status: int) -> None:
    """The error names any other status."""
    body = b"" if status == 204 else b"gone"
    error = await failure_of(host, response(body, status=status), timeout=Timeout(download=1))
    assert error.status == status
    assert str(status) in str(error)


async def test_redirect_without_a_location(host: RawServer) -> None:
    """A redirect without a location is an error that says so."""
    error = await failure_of(host, response(b"", status=302))
    assert error.status == 302


@pytest.mark.parametrize("content_type", ["text/html", "image/png"])
async def test_download_of_a_web_page(host: RawServer, content_type: str) -> None:
    """A web page is not an image, whatever its content type."""
    page = b"<!doctype html><title>Sign in</title>"
    error = await failure_of(host, response(page, content_type=content_type))
    assert "not an image" in str(error)
    assert error.status == 200


async def test_download_of_an_empty_file(host: RawServer) -> None:
    """An empty file is not an image."""
    assert "empty" in str(await failure_of(host, response(b"")))


@pytest.mark.parametrize("announced", [True, False])
async def test_download_too_large(host: RawServer, announced: bool) -> None:
    """An image over the limit is not read further, whether its length is announced or not."""
    content = PNG + bytes(100_000)
    reply = response(content) if announced else [*open_stream(content), End.HOLD]
    limits = Limits(max_response_bytes=100_000)
    error = await failure_of(host, reply, limits=limits)
    assert "larger than 100,000 bytes" in str(error)
    await host.wait_disconnected()


async def test_download_as_large_as_allowed(host: RawServer) -> None:
    """An image of exactly the limit is downloaded."""
    host.reply_with(response(PNG + bytes(1_000 - len(PNG))))
    client, image = await image_at(f"{host.origin}/a.png", limits=Limits(max_response_bytes=1_000))
    async with client:
        assert len(await image.read()) == 1_000


@pytest.mark.parametrize(
    "reply",
    [
        [End.CLOSE],
        [End.RESET],
        [head(200, Content_Length="5000"), PNG, End.CLOSE],
        [head(200, Content_Length="5000"), PNG, End.RESET],
        [*open_stream(PNG), End.CLOSE],
        [b"what is this?\r\n\r\n", End.CLOSE],
    ],
    ids=["closed", "reset", "cut", "reset-in-body", "cut-chunks", "no-http"],
)
async def test_download_broken_off(host: RawServer, reply: Reply) -> None:
    """A broken download is a DownloadError, whatever the cause."""
    assert str(await failure_of(host, reply))


@pytest.mark.parametrize(
    "reply",
    [[End.HOLD], [head(200, Content_Length="5000"), PNG, End.HOLD]],
    ids=["no-response", "no-more"],
)
async def test_download_takes_too_long(host: RawServer, reply: Reply) -> None:
    """Downloads have their own limit, and the error says how to raise it."""
    error = await failure_of(host, reply, timeout=Timeout(download=0.1))
    assert "download" in str(error)
    assert "Timeout(download=" in str(error)


async def test_download_takes_too_long_for_the_call(host: RawServer) -> None:
    """The limits of the finished call do not apply to the download."""
    gate = asyncio.Event()
    host.reply_with([gate, *response(PNG)])
    client, image = await image_at(f"{host.origin}/a.png", timeout=Timeout(total=5, idle=0.5))
    async with client:
        reading = asyncio.ensure_future(image.read())
        await asyncio.wait([reading], timeout=0.7)
        assert not reading.done()
        gate.set()
        assert await reading == PNG


async def test_download_from_an_unreachable_host() -> None:
    """A host that cannot be reached is a DownloadError that names it."""
    async with RawServer(response(PNG)) as gone:
        origin = gone.origin
    client, image = await image_at(f"{origin}/a.png")
    async with client:
        with pytest.raises(DownloadError, match="cannot be reached") as caught:
            await image.read()
    assert caught.value.url == f"{origin}/a.png"
    assert caught.value.billing == "billed"


@pytest.mark.parametrize("url", ["ftp://host/a.png", "file:///etc/hostname", "mailto:a@b"])
async def test_download_of_another_kind_of_address(url: str) -> None:
    """An address that is not HTTP is not fetched."""
    client, image = await image_at(url)
    async with client:
        with pytest.raises(DownloadError, match="neither http nor https"):
            await image.read()


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://host:port/a.png", "http://host\x00/"]
)
async def test_download_of_a_broken_address(url: str) -> None:
    """An invalid URL is a DownloadError, since the image was created."""
    client, image = await image_at(url)
    async with client:
        with pytest.raises(DownloadError) as caught:
            await image.read()
    assert caught.value.billing == "billed"


class Anywhere(aiohttp.abc.AbstractResolver):
    """Resolver that finds every name on this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": family,
                "proto": 0,
                "flags": 0,
            }
        ]

    async def close(self) -> None:
        """Do nothing."""


@pytest.fixture
async def public() -> AsyncIterator[tuple[RawServer, aiohttp.ClientSession]]:
    """Yield an API with a public address, and the session that resolves it."""
    connector = aiohttp.TCPConnector(resolver=Anywhere())
    async with RawServer() as api, aiohttp.ClientSession(connector=connector) as session:
        yield api, session


PRIVATE_HOSTS = [
    "127.0.0.1",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "[::ffff:127.0.0.1]",
    "[::1]",
    "169.254.169.254",
    "10.0.0.1",
    "[fe80::1%25lo]",
]


@pytest.mark.parametrize("name", PRIVATE_HOSTS)
async def test_private_address(
    host: RawServer, public: tuple[RawServer, aiohttp.ClientSession], name: str
) -> None:
    """A server on the internet cannot make the client request private addresses."""
    api, session = public
    api.reply_with(response({"data": [{"url": f"http://{name}:{host.port}/a.png"}]}))
    base_url = f"http://api.invalid:{api.port}/v1"
    async with AsyncImages(API_KEY, base_url=base_url, session=session) as client:
        (image,) = await client.generate("a boat")
        with pytest.raises(DownloadError, match=r"private|cannot be used") as caught:
            await image.read()
    assert caught.value.billing == "billed"
    assert host.accepted == 0


async def test_private_address_that_is_allowed(
    host: RawServer, public: tuple[RawServer, aiohttp.ClientSession]
) -> None:
    """Private addresses can be allowed."""
    api, session = public
    api.reply_with(response({"data": [{"url": f"{host.origin}/a.png"}]}))
    base_url = f"http://api.invalid:{api.port}/v1"
    limits = Limits(private_downloads=True)
    async with AsyncImages(API_KEY, base_url=base_url, session=session, limits=limits) as client:
        (image,) = await client.generate("a boat")
        assert await image.read() == PNG


async def test_read_without_a_client() -> None:
    """An image without a client, such as an unpickled one, says that it cannot be fetched."""
    with pytest.raises(DownloadError, match="no client to download") as caught:
        await pickle.loads(pickle.dumps(Image(url="https://host/a.png"))).read()
    assert caught.value.billing == "billed"
    assert caught.value.url == "https://host/a.png"


async def test_read_after_the_client_was_closed(host: RawServer) -> None:
    """After its client is closed, a URL is not fetched: the error says so."""
    client, image = await image_at(f"{host.origin}/a.png")
    await client.aclose()
    try:
        with pytest.raises(DownloadError, match="closed"):
            await image.read()
    finally:
        await client.aclose()
    assert host.requests == []


async def test_read_within_a_stream(host: RawServer) -> None:
    """A completed event may carry a URL instead of bytes; it is read in the same way."""
    async with (
        RawServer(response({"data": [{"url": f"{host.origin}/a.png"}]})) as api,
        AsyncImages(API_KEY, base_url=api.base_url) as client,
    ):
        async with client.generate("a boat", stream=True) as stream:
            async for event in stream:
                assert event.b64_json is None
                assert await event.image.read() == PNG
                assert event.b64_json == Image(PNG).b64_json
            result: ImagesResponse = await stream.result()
        assert result[0].content == PNG
    assert len(host.requests) == 1
