"""The studio's backend, over real HTTP: what the page gets, and what others are refused."""

import contextlib
import html.parser
import io
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import anyio
import pytest
from PIL import Image as Pillow

from elkimg_async import AsyncImages, CompletedImage, ConfigurationError, GenerateRequest, Image
from elkimg_async.local import LocalServer
from elkimg_async.studio.server import OWN_HEADER, Gallery, Order, serve
from tests.helpers.command import run, started
from tests.helpers.canned import PNG, Canned, answer

KEY = "sk-of-the-studios-test"
PROMPT = {"prompt": "A kitten"}


class Running(NamedTuple):
    """A studio, what it asks, and somebody who asks it."""

    url: str
    server: LocalServer
    gallery: Gallery
    http: aiohttp.ClientSession

    @property
    def own(self) -> dict[str, str]:
        """What the studio's page sends with a request."""
        return {"Origin": self.url, "Sec-Fetch-Site": "same-origin", OWN_HEADER: "1"}

    async def generate(self, request: object, **headers: str) -> tuple[int, str]:
        """Ask for pictures as the page does; `headers` replace its own."""
        order = {"id": str(uuid.uuid4()), "request": request}
        sent = {**self.own, **headers}
        async with self.http.post(f"{self.url}/api/generate", json=order, headers=sent) as reply:
            return reply.status, await reply.text()

    async def pictures(self) -> list[dict[str, Any]]:
        """What a page that is loaded now shows."""
        async with self.http.get(f"{self.url}/api/session") as reply:
            pictures = (await reply.json())["pictures"]
            assert isinstance(pictures, list)
            return pictures


@contextlib.asynccontextmanager
async def studio(server: LocalServer, **options: Any) -> AsyncIterator[Running]:
    gallery = options.pop("gallery", None) or Gallery()
    async with (
        AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client,
        serve(client, gallery=gallery, **options) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Running(url, server, gallery, http)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with LocalServer(api_key=KEY, light=True, delay=0) as server, studio(server) as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream that must have ended well."""
    *frames, done, end = [frame for frame in text.split("\n\n") if "data:" in frame or not frame]
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(frame.partition("data: ")[2]) for frame in frames]


def problem(text: str) -> dict[str, Any]:
    """The error in a refusal, or at the end of a stream."""
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
    """Each file of the page comes with its type, and with what a browser needs to keep it apart."""
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


async def test_page_keeps_to_its_policy(running: Running) -> None:
    """Nothing in the page is inline or comes from elsewhere, and each field has a name to be read out."""
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

    async with running.http.get(running.url) as reply:
        Reader().feed(await reply.text())
    assert wrong == []
    assert fields <= named


async def test_session_at_start(running: Running) -> None:
    """The page is told where it asks, what each model offers, and that nothing is made yet."""
    async with running.http.get(f"{running.url}/api/session") as reply:
        session = await reply.json()
        assert reply.headers["Cache-Control"] == "no-store"
    assert session["server"] in running.server.base_url
    assert session["local"] is False
    assert session["pictures"] == []
    assert session["models"][session["default_model"]]["size"][0] == "1024x1024"
    assert "3840x2160" in session["models"]["gpt-image-2"]["size"]
    assert session["models"]["dall-e-3"]["streams"] is False


# --- who may ask ------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
async def test_host_of_its_own(running: Running, name: str) -> None:
    """The studio answers to each name of this machine, with its own port."""
    host = f"{name}:{running.url.rpartition(':')[2]}"
    async with running.http.get(running.url, headers={"Host": host}) as reply:
        assert reply.status == 200
    status, _ = await running.generate(PROMPT, Host=host, Origin=f"http://{host}")
    assert status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1"]
)
@pytest.mark.parametrize("path", ["/", "/api/session", "/api/pictures/a/0"])
async def test_host_of_others(running: Running, host: str, path: str) -> None:
    """A name that somebody else has pointed here gets nothing, whatever it asks for."""
    headers = {"Host": host.format(port=running.url.rpartition(":")[2])}
    async with running.http.get(running.url + path, headers=headers) as reply:
        assert reply.status == 403
        assert "Content-Security-Policy" in reply.headers
        assert problem(await reply.text())["type"] == "Refused"


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
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/edit", "/api/none"])
async def test_request_of_another_page(
    running: Running, path: str, headers: dict[str, str]
) -> None:
    """No other page can spend the user's money."""
    body = json.dumps({"id": str(uuid.uuid4()), "request": PROMPT})
    sent = {**running.own, **headers}
    async with running.http.post(running.url + path, data=body, headers=sent) as reply:
        assert reply.status == 403
        assert "Access-Control-Allow-Origin" not in reply.headers
    assert not running.server.requests


@pytest.mark.parametrize("missing", ["Origin", OWN_HEADER])
async def test_request_without_a_sign_of_the_page(running: Running, missing: str) -> None:
    """What the page always sends must be there: a form of another site cannot send it."""
    headers = {name: value for name, value in running.own.items() if name != missing}
    order = {"id": str(uuid.uuid4()), "request": PROMPT}
    url = f"{running.url}/api/generate"
    async with running.http.post(url, json=order, headers=headers) as reply:
        assert reply.status == 403
    async with running.http.options(url, headers={"Origin": "http://evil.example"}) as reply:
        assert reply.status == 403
    assert not running.server.requests


async def test_key_is_nowhere(running: Running) -> None:
    """No answer holds the API key, be it a page, a stream or an error."""
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


# --- pictures ---------------------------------------------------------------


async def test_generate_streams_and_keeps(running: Running) -> None:
    """The page gets each event, and after a reload the finished picture with its usage and time."""
    status, text = await running.generate({**PROMPT, "partial_images": 2, "output_format": "webp"})
    assert status == 200
    assert [event["type"].rpartition(".")[2] for event in events(text)] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    [kept] = await running.pictures()
    assert kept["order"]["prompt"] == "A kitten"
    assert kept["types"] == ["image/webp"]
    assert kept["usage"]["total_tokens"] > 0
    assert kept["elapsed"] > 0
    async with running.http.get(f"{running.url}/api/pictures/{kept['id']}/0") as reply:
        assert reply.content_type == "image/webp"
        assert "sandbox" in reply.headers["Content-Security-Policy"]
        assert Pillow.open(io.BytesIO(await reply.read())).size == (1024, 1024)


async def test_generate_by_model_without_stream(running: Running) -> None:
    """A model that cannot stream is asked for a batch, and the page sees no difference."""
    request = {**PROMPT, "model": "dall-e-2", "size": "256x256", "n": 2}
    _, text = await running.generate(request)
    assert ["b64_json" in event for event in events(text)] == [True, True]
    assert (await running.pictures())[0]["types"] == ["image/png", "image/png"]


@pytest.mark.parametrize(
    ("fault", "kind", "billing"),
    [
        ("error=403/insufficient_user_quota", "QuotaExceededError", "refused"),
        ("reset-before-headers", "DisconnectedError", "unknown"),
        ("no-completed", "StreamIncompleteError", "unknown"),
    ],
)
async def test_generate_that_fails(running: Running, fault: str, kind: str, billing: str) -> None:
    """The page is told what went wrong and whether it may have been billed; nothing is kept."""
    running.server.inject(fault)
    status, text = await running.generate(PROMPT)
    assert status == 200
    assert (problem(text)["type"], problem(text)["billing"]) == (kind, billing)
    assert await running.pictures() == []


async def test_generate_of_what_cannot_be(running: Running) -> None:
    """What the model is known to refuse is told in its own words, and nothing is sent."""
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
async def test_generate_of_nonsense(running: Running, body: str) -> None:
    """What cannot be read is refused, in the shape that the page understands."""
    url = f"{running.url}/api/generate"
    async with running.http.post(url, data=body, headers=running.own) as reply:
        assert reply.status == 400
        assert "cannot be read" in problem(await reply.text())["message"]
    assert not running.server.requests


async def test_edit(running: Running) -> None:
    """The picture and its mask go on to the image server, and the result is kept as an edit."""
    form = aiohttp.FormData()
    request = {"prompt": "Blue", "size": "1024x1024", "partial_images": 0}
    form.add_field("order", json.dumps({"id": str(uuid.uuid4()), "request": request}))
    form.add_field("image", png("red", (1024, 1024)), filename="image")
    form.add_field("mask", png("#00000000", (1024, 1024), "RGBA"), filename="mask")
    async with running.http.post(
        f"{running.url}/api/edit", data=form, headers=running.own
    ) as reply:
        [event] = events(await reply.text())
    assert event["type"] == "image_edit.completed"
    assert running.server.requests[-1].path == "/v1/images/edits"
    assert (await running.pictures())[0]["edited"] is True


async def test_edit_without_picture(running: Running) -> None:
    """An edit of nothing is refused."""
    form = {"order": json.dumps({"id": str(uuid.uuid4()), "request": PROMPT})}
    async with running.http.post(
        f"{running.url}/api/edit", data=form, headers=running.own
    ) as reply:
        assert reply.status == 400
        assert "no picture" in problem(await reply.text())["message"]


async def test_browser_leaves(running: Running) -> None:
    """When the browser leaves, the call at the image server ends within a second."""
    running.server.inject("stall-stream")
    order = {"id": str(uuid.uuid4()), "request": PROMPT}
    url = f"{running.url}/api/generate"
    async with running.http.post(url, json=order, headers=running.own) as reply:
        await reply.content.readany()
        await running.server.wait_until(lambda: running.server.generations == 1)
        reply.close()
    with anyio.fail_after(1):
        await running.server.wait_disconnected()


# --- the gallery ------------------------------------------------------------


def keep(gallery: Gallery, size: int = 100) -> str:
    order = Order(id=str(uuid.uuid4()), request=GenerateRequest(prompt="x"))
    event = CompletedImage(type="image_generation.completed", image=Image(b"x" * size))
    gallery.keep(order, event, edited=False, elapsed=1.0)
    return order.id


def test_gallery_is_bounded() -> None:
    """The oldest pictures go when there are too many, or too many bytes, but never the newest."""
    gallery = Gallery(max_bytes=1_000, max_calls=3)
    ids = [keep(gallery) for _ in range(4)]
    assert list(gallery.calls) == ids[1:]
    large = keep(gallery, 800)
    assert list(gallery.calls) == [*ids[2:], large]
    huge = keep(gallery, 5_000)
    assert list(gallery.calls) == [huge]


@pytest.mark.parametrize("path", ["{id}/1", "none/0", "{id}/999"])
async def test_picture_that_is_not_there(running: Running, path: str) -> None:
    """A picture that is not kept is a 404, not a crash."""
    path = path.format(id=keep(running.gallery))
    async with running.http.get(f"{running.url}/api/pictures/{path}") as reply:
        assert reply.status == 404
        assert "not kept" in problem(await reply.text())["message"]


async def test_picture_behind_url() -> None:
    """An image that came as a URL is fetched here, so that the browser asks nobody else."""
    async with Canned() as host:
        host.reply_with(answer({"data": [{"url": f"{host.origin}/a.png"}]}), answer(PNG))
        client = AsyncImages(KEY, base_url=host.base_url)
        async with client, serve(client) as url, aiohttp.ClientSession() as http:
            running = Running(url, LocalServer(), Gallery(), http)
            _, text = await running.generate({**PROMPT, "model": "dall-e-3"})
            assert "url" not in events(text)[0]
            [kept] = await running.pictures()
    assert kept["types"] == ["image/png"]
    assert len(host.requests) == 2


# --- the command ------------------------------------------------------------


async def test_port_that_is_taken() -> None:
    """A port that is in use is said to be, before anything is served."""
    async with LocalServer() as server:
        port = int(server.base_url.split(":")[2].partition("/")[0])
        with pytest.raises(ConfigurationError, match=f"Port {port} cannot be used"):
            async with studio(server, port=port):
                pass


async def test_command_local(tmp_path: Path) -> None:
    """`elkimg studio --local` says where the page is, and serves it until Ctrl-C."""
    async with started("studio", "--local", folder=tmp_path) as command:
        line = await command.line(out=True)
        assert line.startswith("The studio is at http://127.0.0.1:")
        url = line.split()[-1]
        async with aiohttp.ClientSession() as http, http.get(f"{url}/api/session") as reply:
            assert (await reply.json())["local"] is True
        command.interrupt()
        assert (await command.ended()).code == 130


async def test_command_without_key(tmp_path: Path) -> None:
    """Without a key both ways out are named, and nothing is served."""
    ended = await run("studio", folder=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert "ELKAPI_API_KEY" in ended.err
    assert "--local" in ended.err
