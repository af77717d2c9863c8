"""The studio's backend over real HTTP."""

import contextlib
import html.parser
import io
import json
import uuid
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import anyio
import pytest
from PIL import Image as Pillow

from elkimg_async import AsyncImages, CompletedImage, ConfigurationError, GenerateRequest, Image
from elkimg_async.local import LocalServer
from elkimg_async.studio.browser import opened
from elkimg_async.studio.server import OWN_HEADER, Gallery, PageRequest, serve
from tests.helpers.command import run, started
from tests.helpers.raw_server import PNG, RawServer, response

KEY = "sk-of-the-studios-test"
PROMPT = {"prompt": "A kitten"}


class Running(NamedTuple):
    """A studio, its image server, and a session in the browser's place."""

    url: str
    server: LocalServer
    gallery: Gallery
    http: aiohttp.ClientSession

    @property
    def host(self) -> str:
        """Host and port."""
        return self.url.split("/")[2]

    @property
    def own(self) -> dict[str, str]:
        """The headers that the page sends with a request."""
        return {"Origin": f"http://{self.host}", "Sec-Fetch-Site": "same-origin", OWN_HEADER: "1"}

    async def generate(self, request: object, **headers: str) -> tuple[int, str]:
        """Generate as the page does; `headers` replace its own."""
        body = {"id": str(uuid.uuid4()), "request": request}
        sent = {**self.own, **headers}
        async with self.http.post(f"{self.url}/api/generate", json=body, headers=sent) as reply:
            return reply.status, await reply.text()

    async def images(self) -> list[dict[str, Any]]:
        """Return what a reloaded page shows."""
        async with self.http.get(f"{self.url}/api/session") as reply:
            images = (await reply.json())["images"]
            assert isinstance(images, list)
            return images


@contextlib.asynccontextmanager
async def studio(server: LocalServer, **options: Any) -> AsyncIterator[Running]:
    gallery = options.pop("gallery", None) or Gallery()
    async with (
        AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client,
        serve(client, gallery=gallery, **options) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Running(url.rstrip("/"), server, gallery, http)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with LocalServer(api_key=KEY, light=True, delay=0) as server, studio(server) as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream that ended with [DONE]."""
    *frames, done, end = [frame for frame in text.split("\n\n") if "data:" in frame or not frame]
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(frame.partition("data: ")[2]) for frame in frames]


def problem(text: str) -> dict[str, Any]:
    """Return the error in a response or at the end of a stream."""
    error = json.loads(text[text.index('{"error"') :])["error"]
    assert isinstance(error, dict)
    return error


def png(colour: str = "red", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, size, colour).save(file, "png")
    return file.getvalue()


# --- the page ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/studio.css", "text/css"), ("/studio.js", "text/javascript")],
)
async def test_page_file(running: Running, path: str, media_type: str) -> None:
    """Each file of the page has its type and the security headers."""
    async with running.http.get(running.url + path) as reply:
        assert reply.status == 200
        assert reply.content_type == media_type
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_page_policy(running: Running) -> None:
    """Nothing in the page is inline or loaded from elsewhere, and each field has a label."""
    wrong: list[str] = []
    named: set[str | None] = set()
    fields: set[str | None] = set()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            wrong.extend(name for name in given if name == "style" or name.startswith("on"))
            source = given.get("src") or given.get("href") or ""
            wrong.extend([source] if "//" in source and not source.startswith("data:") else [])
            wrong.extend([tag] if tag == "style" or (tag == "script" and not source) else [])
            if tag == "label":
                named.add(given.get("for"))
            if tag in ("input", "select", "textarea") and "aria-label" not in given:
                fields.add(given["id"])

    async with running.http.get(f"{running.url}/") as reply:
        Reader().feed(await reply.text())
    assert wrong == []
    assert fields <= named


async def test_session_at_start(running: Running) -> None:
    """The session has the server, the options of each model, and no images."""
    async with running.http.get(f"{running.url}/api/session") as reply:
        session = await reply.json()
        assert reply.headers["Cache-Control"] == "no-store"
    assert session["server"] in running.server.base_url
    assert session["local"] is False
    assert session["images"] == []
    assert session["models"][session["default_model"]]["size"][0] == "1024x1024"
    assert "3840x2160" in session["models"]["gpt-image-2"]["size"]
    assert session["models"]["dall-e-3"]["streams"] is False


# --- access ------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
async def test_host_own_names(running: Running, name: str) -> None:
    """The studio accepts each name of the loopback address, with any port."""
    port = running.host.rpartition(":")[2]
    for host in (name, f"{name}:{port}", f"{name}:8080"):
        async with running.http.get(f"{running.url}/", headers={"Host": host}) as reply:
            assert reply.status == 200
        for scheme in ("http", "https"):
            status, _ = await running.generate(PROMPT, Host=host, Origin=f"{scheme}://{host}")
            assert status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost:x", "[::1", ":1"],
)
@pytest.mark.parametrize("path", ["/", "/api/session", "/api/images/a/0"])
async def test_host_other_names(running: Running, host: str, path: str) -> None:
    """Requests under another name are rejected."""
    headers = {"Host": host.format(port=running.host.rpartition(":")[2])}
    async with running.http.get(running.url + path, headers=headers) as reply:
        assert reply.status == 403
        assert "Content-Security-Policy" in reply.headers
        assert problem(await reply.text())["type"] == "Rejected"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8081"},
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/edit", "/api/none"])
async def test_request_other_page(running: Running, path: str, headers: dict[str, str]) -> None:
    """Requests of other pages are rejected."""
    body = json.dumps({"id": str(uuid.uuid4()), "request": PROMPT})
    sent = {**running.own, **headers}
    async with running.http.post(running.url + path, data=body, headers=sent) as reply:
        assert reply.status == 403
        assert "Access-Control-Allow-Origin" not in reply.headers
    assert not running.server.requests


@pytest.mark.parametrize("missing", ["Origin", OWN_HEADER])
async def test_request_missing_header(running: Running, missing: str) -> None:
    """Headers that only the page sends are required."""
    headers = {name: value for name, value in running.own.items() if name != missing}
    body = {"id": str(uuid.uuid4()), "request": PROMPT}
    url = f"{running.url}/api/generate"
    async with running.http.post(url, json=body, headers=headers) as reply:
        assert reply.status == 403
    async with running.http.options(url, headers={"Origin": "http://evil.example"}) as reply:
        assert reply.status == 403
    assert not running.server.requests


async def test_token(running: Running) -> None:
    """Without the token of the address nothing is served; each studio has its own."""
    root = f"http://{running.host}"
    token = running.url.removeprefix(f"{root}/")
    assert len(token) == 32
    for path in (
        "",
        "/",
        f"/{token[:-1]}/",
        f"/{token}",
        "/api/session",
        "/x/api/session",
        "/%ff/",
    ):
        async with running.http.get(root + path) as reply:
            assert reply.status == 404, path
            assert token not in await reply.text()
    body = {"id": str(uuid.uuid4()), "request": PROMPT}
    for path in ("/api/generate", f"/{token[:-1]}x/api/generate"):
        async with running.http.post(root + path, json=body, headers=running.own) as reply:
            assert reply.status == 404
    assert not running.server.requests
    async with studio(running.server) as other:
        assert other.url.rpartition("/")[2] != token


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("generate", {"Content-Type": "application/json; charset=none"}, b"{}"),
        ("generate", {"Content-Type": "text/plain; charset=utf-8"}, b"\xff"),
        ("edit", {"Content-Type": "multipart/form-data"}, b"x"),
        ("edit", {"Content-Type": "multipart/form-data; boundary=" + "x" * 100}, b"x"),
        ("edit", {"Content-Type": "application/x-www-form-urlencoded; charset=none"}, b"a=1"),
        ("edit", {"Content-Type": "///"}, b"a=1"),
        ("edit", MULTIPART, b""),
        ("edit", MULTIPART, b"no form"),
        ("edit", MULTIPART, b"--b\r\n"),
        ("edit", MULTIPART, b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        ("edit", MULTIPART, b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n"),
        ("edit", MULTIPART, b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx'),
        (
            "edit",
            MULTIPART,
            b'--b\r\nContent-Disposition: form-data; name="request"\r\n'
            b"Content-Type: text/plain; charset=none\r\n\r\nx\r\n--b--\r\n",
        ),
        (
            "edit",
            MULTIPART,
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n--b--\r\n",
        ),
    ],
)
async def test_malformed_body(
    running: Running, path: str, headers: dict[str, str], body: bytes
) -> None:
    """A malformed Content-Type or body gets 400."""
    async with running.http.post(
        f"{running.url}/api/{path}", data=body, headers={**running.own, **headers}
    ) as reply:
        assert reply.status == 400
        assert problem(await reply.text())["billing"] == "not_sent"
    assert not running.server.requests


async def test_api_key_is_not_exposed(running: Running) -> None:
    """No page, stream or error contains the API key."""
    said = []
    for path in ("/", "/studio.js", "/studio.css", "/api/session", "/api/none"):
        async with running.http.get(running.url + path) as reply:
            said += [str(reply.headers), await reply.text()]
    running.server.inject(f"body=Bad key {KEY}", "error=401/invalid_api_key")
    for _ in range(3):
        said.append((await running.generate(PROMPT))[1])
    said.append((await running.generate({**PROMPT, "n": 99}))[1])
    assert '"billing":"unknown"' in said[-4]
    assert "AuthenticationError" in said[-3]
    assert "[DONE]" in said[-2]
    assert not [text for text in said if KEY in text]


# --- images ---------------------------------------------------------------


async def test_generate_streams_and_stores(running: Running) -> None:
    """The page receives each event, and after a reload the finished image with usage and time."""
    status, text = await running.generate({**PROMPT, "partial_images": 2, "output_format": "webp"})
    assert status == 200
    assert [event["type"].rpartition(".")[2] for event in events(text)] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    [kept] = await running.images()
    assert kept["request"]["prompt"] == "A kitten"
    assert kept["types"] == ["image/webp"]
    assert kept["usage"]["total_tokens"] > 0
    assert kept["elapsed"] > 0
    async with running.http.get(f"{running.url}/api/images/{kept['id']}/0") as reply:
        assert reply.content_type == "image/webp"
        assert "sandbox" in reply.headers["Content-Security-Policy"]
        assert Pillow.open(io.BytesIO(await reply.read())).size == (1024, 1024)


async def test_generate_without_stream(running: Running) -> None:
    """A model that cannot stream gets a batch call, and the page receives the same events."""
    request = {**PROMPT, "model": "dall-e-2", "size": "256x256", "n": 2}
    _, text = await running.generate(request)
    assert ["b64_json" in event for event in events(text)] == [True, True]
    assert (await running.images())[0]["types"] == ["image/png", "image/png"]


@pytest.mark.parametrize(
    ("fault", "kind", "billing"),
    [
        ("error=403/insufficient_user_quota", "QuotaExceededError", "refused"),
        ("reset-before-headers", "DisconnectedError", "unknown"),
        ("no-completed", "StreamIncompleteError", "unknown"),
    ],
)
async def test_generate_fails(running: Running, fault: str, kind: str, billing: str) -> None:
    """The page receives the error and its billing, and nothing is stored."""
    running.server.inject(fault)
    status, text = await running.generate(PROMPT)
    assert status == 200
    assert (problem(text)["type"], problem(text)["billing"]) == (kind, billing)
    assert await running.images() == []


async def test_generate_invalid_option(running: Running) -> None:
    """An invalid option is an error before anything is sent."""
    _, text = await running.generate({**PROMPT, "size": "7x7"})
    assert "size '7x7' is not offered" in problem(text)["message"]
    assert problem(text)["billing"] == "not_sent"
    assert not running.server.requests


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[1]",
        "{}",
        '{"id": "1", "request": {"prompt": "x"}}',
        '{"id": "00000000-0000-0000-0000-000000000000", "request": {"prompt": 1}}',
        '{"id": "00000000-0000-0000-0000-000000000000", "request": {"prompt": "x", "retry": 9}}',
    ],
)
async def test_generate_malformed(running: Running, body: str) -> None:
    """A malformed request gets 400 in the shape that the page understands."""
    url = f"{running.url}/api/generate"
    async with running.http.post(url, data=body, headers=running.own) as reply:
        assert reply.status == 400
        assert "cannot be read" in problem(await reply.text())["message"]
    assert not running.server.requests


async def test_edit(running: Running) -> None:
    """Image and mask are sent to the image server, and the result is stored as an edit."""
    form = aiohttp.FormData()
    request = {"prompt": "Blue", "size": "1024x1024", "partial_images": 0}
    form.add_field("request", json.dumps({"id": str(uuid.uuid4()), "request": request}))
    form.add_field("image", png("red", (1024, 1024)), filename="image")
    form.add_field("mask", png("#00000000", (1024, 1024), "RGBA"), filename="mask")
    async with running.http.post(
        f"{running.url}/api/edit", data=form, headers=running.own
    ) as reply:
        [event] = events(await reply.text())
    assert event["type"] == "image_edit.completed"
    assert running.server.requests[-1].path == "/v1/images/edits"
    assert (await running.images())[0]["edited"] is True


async def test_edit_without_image(running: Running) -> None:
    """An edit without an image gets 400."""
    form = {"request": json.dumps({"id": str(uuid.uuid4()), "request": PROMPT})}
    async with running.http.post(
        f"{running.url}/api/edit", data=form, headers=running.own
    ) as reply:
        assert reply.status == 400
        assert "no image" in problem(await reply.text())["message"]


async def test_browser_leaves(running: Running) -> None:
    """When the browser leaves, the call at the image server ends within a second."""
    running.server.inject("stall-stream")
    body = {"id": str(uuid.uuid4()), "request": PROMPT}
    url = f"{running.url}/api/generate"
    async with running.http.post(url, json=body, headers=running.own) as reply:
        await reply.content.readany()
        await running.server.wait_until(lambda: running.server.generations == 1)
        reply.close()
    with anyio.fail_after(1):
        await running.server.wait_disconnected()


# --- the gallery ------------------------------------------------------------


def keep(gallery: Gallery, size: int = 100) -> str:
    page_request = PageRequest(id=str(uuid.uuid4()), request=GenerateRequest(prompt="x"))
    event = CompletedImage(type="image_generation.completed", image=Image(b"x" * size))
    gallery.add(page_request, event, edited=False, elapsed=1.0)
    return page_request.id


def test_gallery_is_bounded() -> None:
    """The oldest images are dropped when there are too many images or bytes; the newest never."""
    gallery = Gallery(max_bytes=1_000, max_calls=3)
    ids = [keep(gallery) for _ in range(4)]
    assert list(gallery.calls) == ids[1:]
    large = keep(gallery, 800)
    assert list(gallery.calls) == [*ids[2:], large]
    huge = keep(gallery, 5_000)
    assert list(gallery.calls) == [huge]


@pytest.mark.parametrize("path", ["{id}/1", "none/0", "{id}/999"])
async def test_image_missing(running: Running, path: str) -> None:
    """An image that is not stored is a 404."""
    path = path.format(id=keep(running.gallery))
    async with running.http.get(f"{running.url}/api/images/{path}") as reply:
        assert reply.status == 404
        assert "no longer" in problem(await reply.text())["message"]


async def test_image_by_url() -> None:
    """An image by URL is downloaded by the studio, so that the browser connects to nobody else."""
    async with RawServer() as host:
        host.reply_with(response({"data": [{"url": f"{host.origin}/a.png"}]}), response(PNG))
        client = AsyncImages(KEY, base_url=host.base_url)
        async with client, serve(client) as url, aiohttp.ClientSession() as http:
            running = Running(url.rstrip("/"), LocalServer(), Gallery(), http)
            _, text = await running.generate({**PROMPT, "model": "dall-e-3"})
            assert "url" not in events(text)[0]
            [kept] = await running.images()
    assert kept["types"] == ["image/png"]
    assert len(host.requests) == 2


# --- the command ------------------------------------------------------------


async def test_port_taken() -> None:
    """A taken port is a configuration error."""
    async with LocalServer() as server:
        port = int(server.base_url.split(":")[2].partition("/")[0])
        with pytest.raises(ConfigurationError, match=f"Port {port} is not available"):
            async with studio(server, port=port):
                pass


def test_opened_in_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser gets the address from a private file, not from its arguments."""
    arguments: list[str] = []

    def open_url(url: str) -> bool:
        arguments.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", open_url)
    with opened("http://127.0.0.1:1/secret/") as found:
        assert found
        page = Path(url2pathname(urlsplit(arguments[0]).path))
        assert "secret" not in arguments[0]
        assert "url=http://127.0.0.1:1/secret/" in page.read_text()
        assert page.parent.stat().st_mode & 0o077 == 0
    assert not page.exists()


async def test_command_local(tmp_path: Path) -> None:
    """`elkimg studio --local` prints the address of the page and serves it until Ctrl-C."""
    async with started("studio", "--local", folder=tmp_path) as command:
        line = await command.line(out=True)
        assert line.startswith("The studio is at http://127.0.0.1:")
        url = line.split()[-1]
        async with aiohttp.ClientSession() as http, http.get(f"{url}api/session") as reply:
            assert (await reply.json())["local"] is True
        command.interrupt()
        assert (await command.ended()).code == 130


async def test_command_without_api_key(tmp_path: Path) -> None:
    """Without an API key the error names the variable and --local."""
    ended = await run("studio", folder=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert "ELKAPI_API_KEY" in ended.err
    assert "--local" in ended.err
