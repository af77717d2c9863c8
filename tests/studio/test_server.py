"""The studio's backend over real HTTP."""

import asyncio
import contextlib
import html.parser
import io
import json
import os
import signal
import uuid
import webbrowser
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import anyio
import pytest
from PIL import Image as Pillow

from elkimg_async import AsyncImages, ConfigurationError, Pricing, StoreError, TokenPrices
from elkimg_async.local import LocalServer
from elkimg_async.studio import listener, page_request
from elkimg_async.studio.browser import opened
from elkimg_async.studio.server import OWN_HEADER, serve
from tests.helpers.calls import SOON
from tests.helpers.command import run, started
from tests.helpers.raw_server import PNG, RawServer, response

KEY = "sk-of-the-studios-test"
PROMPT = {"prompt": "A kitten"}


class Running(NamedTuple):
    """A studio, its image server, and a session in the browser's place."""

    url: str
    server: LocalServer
    http: aiohttp.ClientSession

    @property
    def host(self) -> str:
        """Host and port."""
        return self.url.split("/")[2]

    @property
    def own(self) -> dict[str, str]:
        """The headers that the page sends with a request."""
        return {"Origin": f"http://{self.host}", "Sec-Fetch-Site": "same-origin", OWN_HEADER: "1"}

    async def post(self, request: object, id: str | None = None, **headers: str) -> tuple[int, str]:
        """Start a job as the page does; `headers` replace its own."""
        body = {"id": id or str(uuid.uuid4()), "request": request}
        sent = {**self.own, **headers}
        async with self.http.post(f"{self.url}/api/jobs", json=body, headers=sent) as reply:
            return reply.status, await reply.text()

    async def start(self, request: object, id: str | None = None) -> str:
        """Start a job; return its id."""
        status, text = await self.post(request, id)
        assert status == 202, text
        return str(json.loads(text)["job"]["id"])

    async def generate(self, request: object) -> dict[str, Any]:
        """Start a job; return it when it has finished."""
        return await self.finished(await self.start(request))

    async def edit(self, *images: bytes, mask: bytes | None = None) -> dict[str, Any]:
        """Start an edit; return it when it has finished."""
        form = aiohttp.FormData()
        request = {"prompt": "Blue", "partial_images": 0}
        form.add_field("request", json.dumps({"id": str(uuid.uuid4()), "request": request}))
        for image in images:
            form.add_field("image", image, filename="image")
        if mask:
            form.add_field("mask", mask, filename="mask")
        async with self.http.post(f"{self.url}/api/jobs", data=form, headers=self.own) as reply:
            assert reply.status == 202, await reply.text()
            return await self.finished((await reply.json())["job"]["id"])

    async def finished(self, id: str) -> dict[str, Any]:
        """Wait until a job has finished, and return it."""
        async with events(self) as messages:
            async for event, data in messages:
                found = [data] if event == "job" else data.get("jobs", [])
                for job in found:
                    if job["id"] == id and job["state"] not in ("queued", "running"):
                        return dict(job)
        raise AssertionError

    async def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, oldest first."""
        async with self.http.get(f"{self.url}/api/jobs") as reply:
            jobs = (await reply.json())["jobs"]
            assert isinstance(jobs, list)
            return jobs

    async def image(self, job: dict[str, Any], kind: str = "images") -> bytes:
        """Return the first image of a job."""
        path = f"/api/jobs/{job['id']}/{kind}/{job['images'][0]['number']}"
        async with self.http.get(self.url + path) as reply:
            assert reply.status == 200
            return await reply.read()


@contextlib.asynccontextmanager
async def events(
    running: Running, after: str = "", ids: list[str] | None = None
) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """Follow the studio as a page does."""
    headers = {"Last-Event-ID": after} if after else {}

    async def read(reply: aiohttp.ClientResponse) -> AsyncGenerator[tuple[str, Any], None]:
        fields: dict[str, str] = {}
        async for line in reply.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                if ids is not None:
                    ids.append(fields["id"])
                yield fields["event"], json.loads(fields["data"])
                fields = {}

    async with running.http.get(
        f"{running.url}/api/events", headers=headers, read_bufsize=2**22
    ) as reply:
        assert reply.content_type == "text/event-stream"
        async with contextlib.aclosing(read(reply)) as messages:
            yield messages


@contextlib.asynccontextmanager
async def studio(server: Any, **options: Any) -> AsyncIterator[Running]:
    retry = options.pop("retry", 0)
    async with (
        AsyncImages(KEY, base_url=server.base_url, retry=retry) as client,
        serve(client, **{"port": 0, "grace": 0, **options}) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Running(url.rstrip("/"), server, http)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with LocalServer(api_key=KEY, light=True, delay=0) as server, studio(server) as running:
        yield running


def problem(text: str) -> dict[str, Any]:
    """Return the error in a response."""
    error = json.loads(text)["error"]
    assert isinstance(error, dict)
    return error


def png(colour: str = "red", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, size, colour).save(file, "png")
    return file.getvalue()


# --- the page ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/studio.css", "text/css"),
        ("/studio.js", "text/javascript"),
        ("/editor.js", "text/javascript"),
    ],
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
    """The session has the server and the options of each model."""
    async with running.http.get(f"{running.url}/api/session") as reply:
        session = await reply.json()
        assert reply.headers["Cache-Control"] == "no-store"
    assert session["server"] in running.server.base_url
    assert session["local"] is False
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
            status, _ = await running.post(PROMPT, Host=host, Origin=f"{scheme}://{host}")
            assert status == 202


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost:x", "[::1", ":1"],
)
@pytest.mark.parametrize("path", ["/", "/api/session", "/api/events", "/api/jobs/a/images/1"])
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
@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/a/cancel", "/api/none"])
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
    url = f"{running.url}/api/jobs"
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
    wrong = token[:-1] + ("y" if token.endswith("x") else "x")
    for path in ("/api/jobs", f"/{wrong}/api/jobs"):
        async with running.http.post(root + path, json=body, headers=running.own) as reply:
            assert reply.status == 404
    assert not running.server.requests
    async with studio(running.server) as other:
        assert other.url.rpartition("/")[2] != token


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/json; charset=none"}, b"{}"),
        ({"Content-Type": "application/json"}, b"\xff"),
        ({"Content-Type": "text/plain"}, b"{}"),
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=" + "x" * 100}, b"x"),
        ({"Content-Type": "application/x-www-form-urlencoded; charset=none"}, b"a=1"),
        ({"Content-Type": "///"}, b"a=1"),
        (MULTIPART, b""),
        (MULTIPART, b"no form"),
        (MULTIPART, b"--b\r\n"),
        (MULTIPART, b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        (MULTIPART, b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n"),
        (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx'),
        (
            MULTIPART,
            b'--b\r\nContent-Disposition: form-data; name="request"\r\n'
            b"Content-Type: text/plain; charset=none\r\n\r\nx\r\n--b--\r\n",
        ),
        (
            MULTIPART,
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n--b--\r\n",
        ),
    ],
)
async def test_malformed_body(running: Running, headers: dict[str, str], body: bytes) -> None:
    """A malformed Content-Type or body gets 400."""
    async with running.http.post(
        f"{running.url}/api/jobs", data=body, headers={**running.own, **headers}
    ) as reply:
        assert reply.status == 400
        assert problem(await reply.text())["billing"] == "not_sent"
    assert not running.server.requests


async def test_api_key_is_not_exposed(running: Running) -> None:
    """No page, event or error contains the API key, though the owner reads the server's words."""
    said = []
    for path in ("/", "/studio.js", "/studio.css", "/api/session", "/api/models", "/api/none"):
        async with running.http.get(running.url + path) as reply:
            said += [str(reply.headers), await reply.text()]
    running.server.inject(f"body=Bad key {KEY}", "error=401/invalid_api_key")
    jobs = [await running.generate(PROMPT) for _ in range(2)]
    said += [json.dumps(jobs), (await running.post({**PROMPT, "n": 99}))[1]]
    assert [job["error"]["type"] for job in jobs] == ["ResponseError", "AuthenticationError"]
    assert jobs[1]["error"]["message"]
    assert not [text for text in said if KEY in text]


# --- jobs -----------------------------------------------------------------


async def test_start_returns_at_once(running: Running) -> None:
    """POST returns 202 while the image is not there yet, and every page follows the job."""
    running.server.inject("stall-stream=1")
    status, text = await running.post({**PROMPT, "partial_images": 2})
    assert status == 202
    job = json.loads(text)["job"]
    assert (job["state"], job["images"]) == ("queued", [])
    for _ in range(2):
        async with events(running) as messages:
            async for event, data in messages:
                found = data["jobs"][0] if event == "jobs" else data
                if found["partial"]:
                    break
    async with running.http.post(
        f"{running.url}/api/jobs/{job['id']}/cancel", headers=running.own
    ) as reply:
        cancelled = (await reply.json())["job"]
    assert cancelled["state"] == "cancelled"
    assert cancelled["partial"]
    assert cancelled["error"]["billing"] == "unknown"
    path = f"/api/jobs/{job['id']}/images/{cancelled['partial']}"
    async with running.http.get(running.url + path) as reply:
        assert reply.status == 200


async def test_start_twice_is_one_job(running: Running) -> None:
    """A double click, or a request sent again, is one generation; other fields are an error."""
    name = str(uuid.uuid4())
    replies = await asyncio.gather(*(running.post(PROMPT, name) for _ in range(20)))
    assert {status for status, _ in replies} == {202}
    await running.finished(name)
    assert running.server.generations == 1
    status, text = await running.post({"prompt": "Another"}, name)
    assert (status, problem(text)["type"]) == (409, "JobConflictError")


async def test_many_streams(running: Running) -> None:
    """Twelve running jobs and three pages block nothing."""
    running.server.inject(*["stall-stream"] * 12)
    ids = [await running.start({"prompt": f"{number}"}) for number in range(12)]
    async with events(running), events(running), events(running):
        job = await running.generate(PROMPT)
        assert job["state"] == "done"
    states = {job["id"]: job["state"] for job in await running.jobs()}
    assert {states[name] for name in ids} <= {"queued", "running"}


async def test_events_in_order(running: Running) -> None:
    """A page sees queued, running, partial images and the final one, then the deletion."""
    job: dict[str, Any] = {}
    async with events(running) as messages:
        assert (await anext(messages))[0] == "jobs"
        name = await running.start({**PROMPT, "partial_images": 2, "output_format": "webp"})
        seen: list[tuple[str, Any, int]] = []
        while not seen or seen[-1][0] != "done":
            event, job = await anext(messages)
            assert (event, job["id"]) == ("job", name)
            seen.append((job["state"], job["partial"], len(job["images"])))
        assert seen[0] == ("queued", None, 0)
        assert ("running", 2, 0) in seen
        assert seen[-1] == ("done", None, 1)
        assert job["images"][0]["type"] == "image/webp"
        assert job["images"][0]["name"] == "a-kitten.webp"
        assert job["usage"]["total_tokens"] > 0
        async with running.http.delete(
            f"{running.url}/api/jobs/{name}", headers=running.own
        ) as reply:
            assert reply.status == 204
        assert await anext(messages) == ("deleted", {"id": name})
    assert await running.jobs() == []


async def test_events_resume(running: Running) -> None:
    """A page that reconnects receives what it missed; with an unknown id, everything."""
    ids: list[str] = []
    first = await running.generate(PROMPT)
    async with events(running, ids=ids) as messages:
        await anext(messages)
    second = await running.generate({"prompt": "Second"})
    async with running.http.delete(
        f"{running.url}/api/jobs/{first['id']}", headers=running.own
    ) as reply:
        assert reply.status == 204
    async with events(running, after=ids[-1]) as messages:
        missed = [await anext(messages), await anext(messages)]
    assert [event for event, _ in missed] == ["job", "deleted"]
    assert missed[0][1]["id"] == second["id"]
    for unknown in ("1-1", "x", f"{ids[-1]}9999", "-", "é-1"):
        async with events(running, after=unknown) as messages:
            event, data = await anext(messages)
        assert (event, [job["id"] for job in data["jobs"]]) == ("jobs", [second["id"]])


async def test_retry_is_reported() -> None:
    """A retry is reported with its time and number."""
    async with (
        LocalServer(api_key=KEY, light=True, delay=0) as server,
        studio(server, retry=2) as running,
    ):
        server.inject("rate-limit=1")
        job: dict[str, Any] = {}
        async with events(running) as messages:
            await running.start(PROMPT)
            async for event, job in messages:
                if event == "job" and job["retry"]:
                    break
            assert (job["retry"]["attempt"], job["retry"]["of"]) == (2, 3)
            async for _, job in messages:
                if job["state"] == "done":
                    break
            assert job["retry"] is None


@pytest.mark.parametrize(
    ("fault", "kind", "billing"),
    [
        ("error=403/insufficient_user_quota", "QuotaExceededError", "refused"),
        ("reset-before-headers", "DisconnectedError", "unknown"),
        ("no-completed", "StreamIncompleteError", "unknown"),
    ],
)
async def test_job_fails(running: Running, fault: str, kind: str, billing: str) -> None:
    """The page receives the error, the server's own words and the billing."""
    running.server.inject(fault)
    job = await running.generate(PROMPT)
    assert (job["state"], job["images"]) == ("failed", [])
    assert (job["error"]["type"], job["error"]["billing"]) == (kind, billing)
    assert job["error"]["message"]


async def test_start_invalid_option(running: Running) -> None:
    """An option that the model does not have is an error before anything is sent."""
    status, text = await running.post({**PROMPT, "size": "7x7"})
    assert status == 400
    assert "size '7x7' is not offered" in problem(text)["message"]
    assert problem(text)["billing"] == "not_sent"
    assert not running.server.requests


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": 1},
        {**PROMPT, "retry": 9},
        {**PROMPT, "mask": "/etc/passwd"},
        {**PROMPT, "image": "/etc/passwd"},
        {**PROMPT, "extra_headers": {"a": "b"}},
        {**PROMPT, "extra_body": {"a": "b"}},
        [],
    ],
)
async def test_start_malformed(running: Running, request_: object) -> None:
    """Fields that a page may not set, such as files of this machine, get 400."""
    status, text = await running.post(request_)
    assert status == 400
    assert "cannot be read" in problem(text)["message"]
    assert not running.server.requests


@pytest.mark.parametrize("path", ["cancel", ""])
async def test_unknown_job(running: Running, path: str) -> None:
    """A job that does not exist is a 404."""
    url = f"{running.url}/api/jobs/none" + (path and f"/{path}")
    method = "POST" if path else "DELETE"
    async with running.http.request(method, url, headers=running.own) as reply:
        assert reply.status == 404
        assert problem(await reply.text())["type"] == "JobNotFoundError"


# --- images -----------------------------------------------------------------


async def test_generate_without_stream(running: Running) -> None:
    """A model that cannot stream gets a batch call."""
    job = await running.generate({**PROMPT, "model": "dall-e-2", "size": "256x256", "n": 2})
    assert [image["type"] for image in job["images"]] == ["image/png", "image/png"]


async def test_cost_of_job() -> None:
    """A job has the cost that the user's price list gives its tokens."""
    pricing = Pricing({"gpt-image-1.5": TokenPrices(text_input="5", image_output="32")})
    async with (
        LocalServer(api_key=KEY, light=True, delay=0) as server,
        AsyncImages(KEY, base_url=server.base_url, pricing=pricing) as client,
        serve(client, port=0, grace=0) as url,
        aiohttp.ClientSession() as http,
    ):
        job = await Running(url.rstrip("/"), server, http).generate(PROMPT)
    assert 0 < float(job["cost"]) < 1


async def test_image_headers(running: Running) -> None:
    """An image may be cached for ever, and cannot run scripts."""
    job = await running.generate({**PROMPT, "output_format": "webp"})
    path = f"/api/jobs/{job['id']}/images/{job['images'][0]['number']}"
    async with running.http.get(running.url + path) as reply:
        assert reply.content_type == "image/webp"
        assert "sandbox" in reply.headers["Content-Security-Policy"]
        assert "immutable" in reply.headers["Cache-Control"]
        assert Pillow.open(io.BytesIO(await reply.read())).size == (1024, 1024)
        tag = reply.headers["ETag"]
    headers = {"If-None-Match": tag}
    async with running.http.get(running.url + path, headers=headers) as reply:
        assert reply.status == 304


async def test_thumbnail_is_small(tmp_path: Path) -> None:
    """A thumbnail is a twentieth of a large image; without Pillow it is the image itself."""
    async with (
        LocalServer(api_key=KEY, delay=0) as server,
        studio(server, folder=tmp_path) as running,
    ):
        job = await running.generate({**PROMPT, "partial_images": 0})
        original = await running.image(job)
        small = await running.image(job, "thumbnails")
        assert len(small) < len(original) / 20
        assert max(Pillow.open(io.BytesIO(small)).size) == 640
        for file in (tmp_path / "thumbnails").iterdir():
            file.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("sys").modules, "PIL", None)
            assert await running.image(job, "thumbnails") == original


async def test_edit(running: Running) -> None:
    """Images and mask are sent, and kept for another try until the job is deleted."""
    image, mask = png(size=(1024, 1024)), png("#00000000", (1024, 1024), "RGBA")
    job = await running.edit(image, png("blue"), mask=mask)
    assert running.server.requests[-1].path == "/v1/images/edits"
    assert job["edit"] is True
    assert [each["param"] for each in job["inputs"]] == ["image", "image", "mask"]
    url = f"{running.url}/api/inputs/{job['inputs'][0]['sha256']}"
    async with running.http.get(url) as reply:
        assert await reply.read() == image
    other = await running.edit(image)
    for deleted, status in ((job, 200), (other, 404)):
        path = f"{running.url}/api/jobs/{deleted['id']}"
        async with running.http.delete(path, headers=running.own) as reply:
            assert reply.status == 204
        async with running.http.get(url) as reply:
            assert reply.status == status


async def test_edit_without_image(running: Running) -> None:
    """An edit without an image gets 400."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("request", json.dumps({"id": str(uuid.uuid4()), "request": PROMPT}))
    async with running.http.post(
        f"{running.url}/api/jobs", data=form, headers=running.own
    ) as reply:
        assert reply.status == 400
        assert "no image" in problem(await reply.text())["message"]


@pytest.mark.parametrize("path", ["jobs/{id}/images/99", "jobs/none/images/1", "inputs/none"])
async def test_image_missing(running: Running, path: str) -> None:
    """An image that is not stored is a 404."""
    job = await running.generate(PROMPT)
    async with running.http.get(f"{running.url}/api/{path.format(id=job['id'])}") as reply:
        assert reply.status == 404
        assert "no longer" in problem(await reply.text())["message"]


async def test_zip(running: Running) -> None:
    """All images, or those of a job, are downloaded as one archive, each with its own name."""
    first = await running.generate({**PROMPT, "model": "dall-e-2", "size": "256x256", "n": 2})
    await running.generate({**PROMPT, "output_format": "jpeg"})
    await running.generate({**PROMPT, "output_format": "jpeg"})
    names = []
    for query in ("", f"?job={first['id']}"):
        async with running.http.get(f"{running.url}/api/zip{query}") as reply:
            archive = zipfile.ZipFile(io.BytesIO(await reply.read()))
        assert archive.testzip() is None
        names.append(archive.namelist())
    assert names == [
        ["a-kitten.png", "a-kitten-2.png", "a-kitten.jpg", "a-kitten-2.jpg"],
        ["a-kitten.png", "a-kitten-2.png"],
    ]
    assert archive.read("a-kitten.png") == await running.image(first)


async def test_image_by_url() -> None:
    """An image by URL is downloaded by the studio, so that the browser connects to nobody else."""
    async with RawServer() as host, studio(host) as running:
        host.reply_with(response({"data": [{"url": f"{host.origin}/a.png"}]}), response(PNG))
        job = await running.generate({**PROMPT, "model": "dall-e-3"})
        assert job["images"][0]["type"] == "image/png"
        assert await running.image(job) == PNG
        assert len(host.requests) == 2


async def test_models_of_server(running: Running) -> None:
    """The page is offered the server's image models, with what is known of each."""
    async with running.http.get(f"{running.url}/api/models") as reply:
        models = (await reply.json())["models"]
    assert models["dall-e-3"]["edits"] == 0
    assert models["gpt-image-1"]["edits"] == 16
    assert "input_fidelity" not in models["gpt-image-2"]


# --- the folder ---------------------------------------------------------------


async def test_history_survives(tmp_path: Path) -> None:
    """Images, their data and the address survive a restart; the folder has one studio at a time."""
    async with LocalServer(api_key=KEY, light=True, delay=0) as server:
        async with studio(server, folder=tmp_path) as running:
            job = await running.generate(PROMPT)
            image = await running.image(job)
            token = running.url.rpartition("/")[2]
            with pytest.raises(StoreError, match="Another process"):
                async with studio(server, folder=tmp_path):
                    pass
        async with studio(server, folder=tmp_path) as running:
            assert await running.jobs() == [job]
            assert await running.image(job) == image
            assert running.url.rpartition("/")[2] == token
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    (tmp_path / "token").chmod(0o644)
    async with LocalServer(api_key=KEY) as server, studio(server, folder=tmp_path) as running:
        assert running.url.rpartition("/")[2] != token


async def test_killed_while_running(tmp_path: Path) -> None:
    """After `kill -9` finished images are there, and a running job is reported as lost."""
    variables = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    async with LocalServer(api_key=KEY, light=True, delay=0) as server:
        async with (
            started(
                "studio", "--port", "0", folder=tmp_path, server=server, variables=variables
            ) as command,
            aiohttp.ClientSession() as http,
        ):
            url = (await command.line(out=True)).split()[-1]
            running = Running(url.rstrip("/"), server, http)
            done = await running.generate(PROMPT)
            server.inject("stall-stream=1")
            lost = await running.start({**PROMPT, "partial_images": 2})
            while not (await running.jobs())[-1]["partial"]:
                await asyncio.sleep(0.02)
            os.kill(command._process.pid, signal.SIGKILL)
        async with studio(server, folder=tmp_path / "data" / "elkimg" / "studio") as running:
            assert [job["id"] for job in await running.jobs()] == [done["id"], lost]
            job = await running.finished(lost)
            assert (job["state"], job["error"]["billing"]) == ("lost", "unknown")
            assert job["partial"]
            assert await running.image(done)
    assert server.generations == 2


# --- slow and broken connections ------------------------------------------------


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Return what is received before the connection is closed."""
    with anyio.fail_after(SOON):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_slow_headers_are_cut(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A connection that does not finish its headers is closed."""
    monkeypatch.setattr(listener, "HEADER_SECONDS", 0.2)
    async with LocalServer(api_key=KEY) as server, studio(server) as running:
        host, port = running.host.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        assert await closed(reader) == b""
        writer.close()


async def test_idle_upload_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that stands still gets 408, and its connection is closed."""
    monkeypatch.setattr(page_request, "IDLE_SECONDS", 0.1)
    async with LocalServer(api_key=KEY) as server, studio(server) as running:
        host, port = running.host.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        path = urlsplit(running.url).path
        headers = {
            **running.own,
            "Host": running.host,
            "Content-Type": "multipart/form-data; boundary=b",
            "Content-Length": "1000",
        }
        lines = [f"POST {path}/api/jobs HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "", "--b\r\n"]).encode())
        assert b" 408 " in await closed(reader)
        writer.close()
        assert not server.requests


# --- the command ------------------------------------------------------------


async def test_port_taken() -> None:
    """A taken port is a configuration error; without one the next free port is used."""
    async with LocalServer(api_key=KEY) as server:
        port = int(server.base_url.split(":")[2].partition("/")[0])
        with pytest.raises(ConfigurationError, match=f"Port {port} is not available"):
            async with studio(server, port=port):
                pass
        async with studio(server, port=None) as one, studio(server, port=None) as other:
            assert one.host != other.host


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
    variables = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    async with started("studio", "--local", folder=tmp_path, variables=variables) as command:
        line = await command.line(out=True)
        assert line.startswith("The studio is at http://127.0.0.1:")
        url = line.split()[-1]
        async with aiohttp.ClientSession() as http, http.get(f"{url}api/session") as reply:
            assert (await reply.json())["local"] is True
        command.interrupt()
        assert (await command.ended()).code == 130


async def test_command_waits_for_jobs(tmp_path: Path) -> None:
    """Ctrl-C waits for images in progress; a second one ends at once, and nothing is repeated."""
    variables = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    async with (
        LocalServer(api_key=KEY, light=True, delay=0) as server,
        started(
            "studio", "--port", "0", folder=tmp_path, server=server, variables=variables
        ) as command,
        aiohttp.ClientSession() as http,
    ):
        url = (await command.line(out=True)).split()[-1]
        server.inject("stall-stream")
        await Running(url.rstrip("/"), server, http).start(PROMPT)
        await server.wait_until(lambda: server.generations == 1)
        command.interrupt()
        await command.wait_for("Waiting for 1 job in progress")
        command.interrupt()
        with anyio.fail_after(SOON):
            assert (await command.ended()).code == 130
        assert server.generations == 1


async def test_command_without_api_key(tmp_path: Path) -> None:
    """Without an API key the error names the variable and --local."""
    ended = await run("studio", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "ELKAPI_API_KEY" in ended.err
    assert "--local" in ended.err
