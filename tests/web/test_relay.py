"""Relaying to browsers: real frameworks on real servers, and browsers that leave, stop reading or
stay.
"""

import asyncio
import base64
import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import fastapi
import openai
import pytest
import starlette.applications
import starlette.requests
import uvicorn
from aiohttp import web as aiohttp_web
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import elkimg_async
from elkimg_async import AsyncImages, CompletedImage, Image, PartialImage, errors, web
from elkimg_async.local import LocalServer
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.web import frameworks
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    End,
    RawServer,
    event,
    open_stream,
    response,
    stream,
)
from tests.test_cancellation import running, until

BIG = PNG + bytes(1024 * 1024)
COMPLETED = "image_generation.completed"
PARTIAL = "image_generation.partial_image"
B64 = base64.b64encode(PNG).decode()
Generate = Callable[[AsyncImages, str], Any]


@pytest.fixture(autouse=True)
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever a test does, it leaves no task behind, and no other logger warns."""
    before = running()
    yield
    await until(lambda: running() <= before)
    noise = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.WARNING and record.name != "elkimg_async"
    ]
    assert noise == []


@pytest.fixture
async def upstream() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


def client_of(server: LocalServer | RawServer) -> AsyncImages:
    """A client of this server that does not retry."""
    key = server.api_key if isinstance(server, LocalServer) else API_KEY
    return AsyncImages(key, base_url=server.base_url, retry=0)


# --- backends: the recipes of the README, around whatever is to be tested ---


def generated(client: AsyncImages, prompt: str) -> Any:
    """What the backend relays unless a test says otherwise."""
    return client.generate(prompt, stream=True, partial_images=2)


def with_fastapi(
    make_client: Callable[[], AsyncImages], generate: Generate, **options: Any
) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[dict[str, AsyncImages]]:
        async with make_client() as client:
            yield {"client": client}

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.api_route("/picture", methods=["GET", "HEAD"])
    async def picture(request: fastapi.Request, prompt: str) -> Response:
        return web.starlette_response(generate(request.state.client, prompt), **options)

    return app


def with_starlette(
    make_client: Callable[[], AsyncImages], generate: Generate, **options: Any
) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(
        app: starlette.applications.Starlette,
    ) -> AsyncIterator[dict[str, AsyncImages]]:
        async with make_client() as client:
            yield {"client": client}

    async def picture(request: starlette.requests.Request) -> Response:
        prompt = request.query_params["prompt"]
        return web.starlette_response(generate(request.state.client, prompt), **options)

    return starlette.applications.Starlette(routes=[Route("/picture", picture)], lifespan=lifespan)


def with_aiohttp(
    make_client: Callable[[], AsyncImages], generate: Generate, **options: Any
) -> aiohttp_web.Application:
    client = aiohttp_web.AppKey("client", AsyncImages)

    async def lifespan(app: aiohttp_web.Application) -> AsyncIterator[None]:
        async with make_client() as app[client]:
            yield

    async def picture(request: aiohttp_web.Request) -> aiohttp_web.StreamResponse:
        events = generate(request.app[client], request.query["prompt"])
        return await web.aiohttp_response(request, events, **options)

    app = aiohttp_web.Application()
    app.cleanup_ctx.append(lifespan)
    app.add_routes([aiohttp_web.get("/picture", picture)])
    return app


@asynccontextmanager
async def on_uvicorn(app: ASGIApp, *, send_buffer: int = 0, **config: Any) -> AsyncIterator[int]:
    """The app on a uvicorn in this loop; yields its port."""
    listening = listen(send_buffer)
    server = uvicorn.Server(uvicorn.Config(app, **{"log_config": None, "lifespan": "on", **config}))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):  # it would wait for its connections for ever
            await serving


@asynccontextmanager
async def on_aiohttp(
    app: aiohttp_web.Application, *, send_buffer: int = 0, **config: Any
) -> AsyncIterator[int]:
    """The app on aiohttp's own server in this loop; yields its port."""
    listening = listen(send_buffer)
    runner = aiohttp_web.AppRunner(app, shutdown_timeout=0.2, **config)
    await runner.setup()
    try:
        await aiohttp_web.SockSite(runner, listening).start()
        yield listening.getsockname()[1]
    finally:
        await runner.cleanup()


def listen(send_buffer: int) -> socket.socket:
    """A listening socket, whose connections have this send buffer in bytes; 0 for the usual one."""
    listening = socket.socket()
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


def backend(
    name: str,
    server: LocalServer | RawServer,
    generate: Generate = generated,
    *,
    send_buffer: int = 0,
    **options: Any,
) -> AbstractAsyncContextManager[int]:
    """One of the backends, running; yields its port."""

    def make_client() -> AsyncImages:
        return client_of(server)

    framework, _, kind = name.partition("/")
    if framework == "aiohttp":
        config = {"handler_cancellation": True} if kind else {}
        app = with_aiohttp(make_client, generate, **options)
        return on_aiohttp(app, send_buffer=send_buffer, **config)
    build = with_fastapi if framework == "fastapi" else with_starlette
    return on_uvicorn(
        build(make_client, generate, **options), http=kind or "h11", send_buffer=send_buffer
    )


BACKENDS = ["fastapi", "starlette", "aiohttp"]
in_each = pytest.mark.parametrize("name", BACKENDS)
VARIANTS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("fastapi/httptools", "aiohttp/cancelling")
]
in_each_way = pytest.mark.parametrize("name", [*BACKENDS, *VARIANTS])


# --- browsers ---------------------------------------------------------------


class Browser:
    """A client that sees the bytes as they come, reads them only when asked, and may leave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.seen = b""

    @classmethod
    @asynccontextmanager
    async def at(
        cls, port: int, *, method: str = "GET", receive_buffer: int = 0
    ) -> AsyncIterator[Self]:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
        writer.write(f"{method} /picture?prompt=cat HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def read_until(self, text: bytes, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.seen.count(text) < times:
                chunk = await self._reader.read(65536)
                assert chunk, f"the end, and no {text!r} in {self.seen!r:.2000}"
                self.seen += chunk

    async def read_rest(self) -> int:
        """Read until the response's end; return the number of bytes."""
        count, tail = 0, self.seen[-5:]
        async with asyncio.timeout(30):
            while not tail.endswith(b"0\r\n\r\n"):
                chunk = await self._reader.read(2**20)
                assert chunk, "the response was cut"
                count, tail = count + len(chunk), (tail + chunk)[-5:]
        return count

    async def leave(self, server: LocalServer | RawServer) -> float:
        """Close the connection; return the seconds until upstream sees it."""
        started = time.monotonic()
        self._writer.transport.abort()
        async with asyncio.timeout(5):
            await server.wait_disconnected()
        return time.monotonic() - started


async def fetch(port: int) -> tuple[aiohttp.ClientResponse, str]:
    """What a browser receives in the end."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/picture?prompt=cat") as response,
    ):
        return response, await response.text()


def parse(text: str) -> list[tuple[str, Any]]:
    """The events as a browser hands them to a page, by the WHATWG's rules."""
    events, name, data = [], "message", list[str]()
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                joined = "\n".join(data)
                events.append((name, joined if joined == "[DONE]" else json.loads(joined)))
            name, data = "message", []
        else:
            assert field in ("", "retry"), line
    assert not data
    return events


async def collect(relay: web.ServerSentEvents) -> list[tuple[str, Any]]:
    """The events of a relay, without any framework."""
    try:
        return parse(b"".join([piece async for piece in relay]).decode())
    finally:
        await relay.aclose()


async def relayed(server: LocalServer | RawServer, **options: Any) -> list[tuple[str, Any]]:
    """What a browser gets of one stream from this server."""
    async with client_of(server) as client:
        return await collect(web.ServerSentEvents(generated(client, "cat"), **options))


# --- a good stream ----------------------------------------------------------


@in_each_way
async def test_relay_forwards_the_events_of_upstream(name: str, upstream: LocalServer) -> None:
    """A browser gets each event with upstream's fields and image, then [DONE], under the right
    headers.
    """
    seen: list[ImageEvent] = []

    async def recorded(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        async with generated(client, prompt) as opened:
            async for each in opened:
                seen.append(each)
                yield each

    async with backend(name, upstream, recorded) as port:
        response, text = await fetch(port)
    assert response.status == 200
    assert {key: response.headers[key] for key in web.HEADERS} == dict(web.HEADERS)
    *events, done = parse(text)
    assert done == ("message", "[DONE]")
    assert [kind for kind, _ in events] == [PARTIAL, PARTIAL, COMPLETED]
    for (kind, fields), original in zip(events, seen, strict=True):
        assert kind == fields["type"] == original.type
        assert base64.b64decode(fields["b64_json"]) == original.image.content
        assert fields["created_at"] == original.created_at
        assert fields["size"] == original.size
    common = {
        "type",
        "b64_json",
        "created_at",
        "size",
        "quality",
        "background",
        "output_format",
    }
    assert events[0][1].keys() == common | {"partial_image_index"}
    assert events[2][1].keys() == common | {"usage"}
    assert [fields["partial_image_index"] for _, fields in events[:2]] == [0, 1]
    assert events[2][1]["usage"]["total_tokens"] > 0


async def test_relay_leaves_out_what_upstream_did_not_say() -> None:
    """A field that is not known is not there, not even as null, nor within the usage."""
    usage = {"total_tokens": 3, "input_tokens_details": {"text_tokens": 3}}
    sent = event({"type": COMPLETED, "b64_json": B64, "usage": usage})
    async with RawServer(stream(sent, DONE)) as raw_server:
        (kind, fields), _ = await relayed(raw_server)
    assert fields == {"type": COMPLETED, "b64_json": B64, "usage": usage}
    assert kind == COMPLETED


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49151, 49152, 49153, 98304, 300001])
async def test_relay_base64_is_whole_at_every_size(size: int) -> None:
    """The pieces of an image join to its base64, whatever its size."""
    content = (bytes(range(256)) * 1200)[:size]

    async def events() -> AsyncIterator[ImageEvent]:
        yield CompletedImage(type=COMPLETED, image=Image(content))

    (_, fields), _ = await collect(web.ServerSentEvents(events()))
    assert fields["b64_json"] == base64.b64encode(content).decode()


async def test_relay_never_holds_the_base64_whole() -> None:
    """An image of 8 MiB goes out in pieces of some 64 KiB, and costs no more than a few of them."""
    content = PNG + bytes(8 * 1024 * 1024)

    async def events() -> AsyncIterator[ImageEvent]:
        yield CompletedImage(type=COMPLETED, image=Image(content))

    relay = web.ServerSentEvents(events())
    total = longest = 0
    tracemalloc.start()
    try:
        async for piece in relay:
            total, longest = total + len(piece), max(longest, len(piece))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > len(content) * 4 / 3
    assert longest < 66 * 1024
    assert peak < 512 * 1024


async def test_relay_is_read_by_openai(upstream: LocalServer) -> None:
    """Openai's AsyncOpenAI gets the same from a relay, as from upstream itself."""
    client = client_of(upstream)
    app = fastapi.FastAPI()

    @app.post("/v1/images/generations")
    async def generations(request: fastapi.Request) -> Response:
        fields = await request.json()
        del fields["stream"]
        return web.starlette_response(client.generate(fields, stream=True), heartbeat=0.001)

    async def ask(base_url: str) -> list[dict[str, Any]]:
        async with openai.AsyncOpenAI(
            api_key=upstream.api_key, base_url=base_url, max_retries=0
        ) as theirs:
            events = await theirs.images.generate(
                prompt="a heron", model="gpt-image-1", stream=True, partial_images=2
            )
            return [each.to_dict() async for each in events]

    def without_time(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**fields, "created_at": 0} for fields in events]

    async with client, on_uvicorn(app) as port:
        base_url = f"http://127.0.0.1:{port}/v1"
        through = await ask(base_url)
        assert len(through) == 3
        assert without_time(through) == without_time(await ask(upstream.base_url))
        upstream.inject("error-event")
        with pytest.raises(openai.APIError, match="image service failed"):
            await ask(base_url)


async def test_relay_is_read_by_this_client(upstream: LocalServer) -> None:
    """A relay can be upstream of another one: images and usage come through two of them."""
    client = client_of(upstream)
    app = fastapi.FastAPI()

    @app.post("/v1/images/generations")
    async def generations(request: fastapi.Request) -> Response:
        fields = await request.json()
        del fields["stream"]
        return web.starlette_response(client.generate(fields, stream=True), heartbeat=0.001)

    async with (
        client,
        on_uvicorn(app) as port,
        AsyncImages(API_KEY, base_url=f"http://127.0.0.1:{port}/v1", retry=0) as second,
    ):
        result = await generated(second, "a heron").result()
        (*_, (_, fields), _) = await collect(web.ServerSentEvents(generated(second, "a heron")))
    assert base64.b64decode(fields["b64_json"]) == result[0].content
    assert result.usage is not None


async def test_relay_of_an_open_stream(upstream: LocalServer) -> None:
    """A stream that was awaited first is relayed from its beginning; a refusal is raised by the
    await.
    """
    async with client_of(upstream) as client:
        opened = await generated(client, "cat")
        events = await collect(web.ServerSentEvents(opened))
        assert len(events) == 4
        upstream.inject("error=401")
        with pytest.raises(errors.AuthenticationError):
            await generated(client, "cat")


async def test_relay_of_a_generator_that_changes_events(upstream: LocalServer) -> None:
    """Whatever yields image events can be relayed."""

    async def marked(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        async for each in generated(client, prompt):
            if isinstance(each, CompletedImage):
                yield CompletedImage(type=each.type, image=Image(PNG + b"marked"))

    async with backend("fastapi", upstream, marked) as port:
        _, text = await fetch(port)
    (_, fields), done = parse(text)
    assert base64.b64decode(fields["b64_json"]).endswith(b"marked")
    assert done[1] == "[DONE]"


@pytest.mark.parametrize("pass_urls", [False, True])
async def test_relay_of_an_image_that_is_a_url(pass_urls: bool, upstream: LocalServer) -> None:
    """An image that came as a URL is read here, unless its address is to be passed on."""
    async with client_of(upstream) as client:
        made = await client.generate("cat", model="dall-e-2", response_format="url")
        address = made[0].url
        assert address is not None
        async with RawServer(
            stream(event({"type": COMPLETED, "url": address}), DONE)
        ) as raw_server:
            (_, fields), _ = await relayed(raw_server, pass_urls=pass_urls)
        content = await made[0].read()
    if pass_urls:
        assert fields == {"type": COMPLETED, "url": address}
    else:
        assert fields == {"type": COMPLETED, "b64_json": base64.b64encode(content).decode()}


@in_each
async def test_relay_head_request_sends_nothing_upstream(name: str, upstream: LocalServer) -> None:
    """A HEAD request gets the headers, and generates no image."""
    async with (
        backend(name, upstream) as port,
        aiohttp.ClientSession() as session,
        session.head(f"http://127.0.0.1:{port}/picture?prompt=cat") as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert not upstream.requests


# --- heartbeats -------------------------------------------------------------


@in_each_way
async def test_heartbeats_before_the_first_byte_and_within_events(name: str) -> None:
    """While upstream is silent, even before its first byte, comments come; then the events are
    whole.
    """
    sent = event({"type": COMPLETED, "b64_json": B64})
    begin, go_on, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first, *chunks = open_stream(sent[:60], sent[60:], DONE)
    reply = [begin, first, go_on, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        backend(name, raw_server, heartbeat=0.01) as port,
        Browser.at(port) as browser,
    ):
        await browser.read_until(b"\r\n\r\n12\r\nretry: 2147483647\n\r\n")
        for count, release in enumerate((begin, go_on, finish), start=1):
            await browser.read_until(b": ping\n", times=5 * count)
            release.set()
        await browser.read_until(b"data: [DONE]\n\n")
        assert B64.encode() in browser.seen


async def test_heartbeats_none() -> None:
    """Without heartbeats nothing comes until there is something to say."""
    release = asyncio.Event()
    reply = [release, *stream(event({"type": COMPLETED, "b64_json": B64}), DONE)]
    async with RawServer(reply) as raw_server, client_of(raw_server) as client:
        relay = web.ServerSentEvents(generated(client, "cat"), heartbeat=None)
        assert await anext(relay) == b"retry: 2147483647\n"
        waiting = asyncio.ensure_future(anext(relay))
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        assert not waiting.done()
        release.set()
        assert (await waiting).startswith(b"event: ")
        await relay.aclose()


@pytest.mark.parametrize("heartbeat", [0, -1.0, float("nan")])
async def test_heartbeats_that_cannot_be(heartbeat: float, upstream: LocalServer) -> None:
    """A pause that is not a positive number is rejected at once."""
    async with client_of(upstream) as client:
        stream = generated(client, "cat")
        with pytest.raises(errors.ConfigurationError, match="positive number of seconds"):
            web.starlette_response(stream, heartbeat=heartbeat)
        await stream.aclose()


async def test_relay_of_something_else_is_rejected(upstream: LocalServer) -> None:
    """What cannot be relayed is rejected before a response has begun."""
    async with client_of(upstream) as client:
        opened = generated(client, "cat")
        web.ServerSentEvents(opened)
        with pytest.raises(errors.StreamStateError, match="iterated once"):
            web.starlette_response(opened)
        with pytest.raises(TypeError):
            web.starlette_response([])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- errors -----------------------------------------------------------------


@in_each
@pytest.mark.parametrize(
    ("fault", "before", "kind", "billing"),
    [
        ("error=401", 0, "AuthenticationError", "refused"),
        ("error-event", 2, "ServerError", "unknown"),
        ("no-completed", 2, "StreamIncompleteError", "unknown"),
    ],
)
async def test_error_is_an_event(
    name: str, fault: str, before: int, kind: str, billing: str, upstream: LocalServer
) -> None:
    """A refusal, and a failure on the way, end the response with an error event; the response
    itself is whole.
    """
    upstream.inject(fault)
    async with backend(name, upstream) as port:
        response, text = await fetch(port)
    assert response.status == 200
    *events, (last, body) = parse(text)
    assert [fields["type"] for _, fields in events] == [PARTIAL] * before
    assert last == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["billing"] == billing
    assert body["error"]["request_id"] == upstream.requests[-1].request_id
    assert body["error"].keys() == {"message", "type", "code", "param", "billing", "request_id"}
    check_discreet(text, upstream.base_url)


def check_discreet(text: str, base_url: str) -> None:
    """Nothing of the backend's own is in what the browser gets."""
    host = base_url.removeprefix("http://").removesuffix("/v1")
    for secret in (
        API_KEY,
        "elkimg-local",
        host,
        "ELKAPI",
        "base URL",
        "Traceback",
        ".py",
        "API key",
    ):
        assert secret not in text


SECRET = "http://10.1.2.3:8080/v1 with sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (
            response({"error": {"message": SECRET, "code": SECRET, "param": SECRET}}, status=400),
            "BadRequestError",
        ),
        (
            response({"error": {"message": SECRET, "type": SECRET}}, status=403),
            "PermissionDeniedError",
        ),
        (response({"error": {"message": API_KEY}}, status=401), "AuthenticationError"),
        (response({"error": API_KEY}, status=422), "BadRequestError"),
        (
            response({"error": {"message": SECRET, "code": "model_not_found"}}, status=503),
            "NotFoundError",
        ),
        (
            response({"error": {"message": SECRET}}, status=500, X_Oneapi_Request_Id=SECRET),
            "ServerError",
        ),
        (
            response({"error": {"message": SECRET, "code": "insufficient_user_quota"}}, status=403),
            "QuotaExceededError",
        ),
        (
            response(b"<html>" + SECRET.encode(), status=502, content_type="text/html"),
            "ServerError",
        ),
        (response(b"<html>" + SECRET.encode(), content_type="text/html"), "ResponseError"),
        (response(b"", status=307, Location=SECRET), "ResponseError"),
        (response(b'{"data": []}'), "EmptyResultError"),
        ([End.RESET], "DisconnectedError"),
    ],
)
async def test_error_event_reveals_nothing_secret(
    reply: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither keys nor addresses nor headers reach the browser, in whatever part of an answer they
    came.
    """
    async with RawServer(reply) as raw_server:
        ((name, body),) = await relayed(raw_server)
    assert (name, body["error"]["type"]) == ("error", kind)
    text = json.dumps(body)
    check_discreet(text, raw_server.base_url)
    assert "10.1.2.3" not in text
    assert "sk-" not in text
    (logged,) = [record for record in caplog.records if record.name == "elkimg_async"]
    assert logged.levelno == logging.WARNING
    assert kind in logged.getMessage()
    assert API_KEY not in logged.getMessage()


async def test_error_before_sending_keeps_its_message(upstream: LocalServer) -> None:
    """What this package rejects itself is reported as it is, with the parameter."""
    async with client_of(upstream) as client:
        events = client.generate("cat", stream=True, n=11)
        ((_, body),) = await collect(web.ServerSentEvents(events))
        assert body["error"]["type"] == "InvalidRequestError"
        assert body["error"]["param"] == "n"
        assert body["error"]["billing"] == "not_sent"
        assert "11" in body["error"]["message"] or "10" in body["error"]["message"]
        events = client.generate("cat", stream=True, extra_headers={"X-Internal Name": "x"})
        ((_, body),) = await collect(web.ServerSentEvents(events))
        assert body["error"]["message"] == "The request is not valid."
    assert not upstream.requests


async def test_error_of_a_rejected_prompt_keeps_its_message() -> None:
    """Upstream's words about the request are passed on, with its code."""
    said = {
        "message": "Your request was rejected by the safety system.",
        "code": "moderation_blocked",
    }
    async with RawServer(response({"error": said}, status=400)) as raw_server:
        ((_, body),) = await relayed(raw_server)
    assert body["error"]["type"] == "ModerationError"
    assert body["error"]["code"] == "moderation_blocked"
    assert said["message"] in body["error"]["message"]


async def test_error_without_a_server() -> None:
    """An upstream that is not there is a plain sentence without its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with AsyncImages(API_KEY, base_url=base_url, retry=0) as client:
            ((_, body),) = await collect(web.ServerSentEvents(generated(client, "cat")))
    assert body["error"]["message"] == "The image service cannot be reached."
    check_discreet(json.dumps(body), base_url)


async def test_error_that_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    """A foreign exception is a general error for the browser, and in full in the log."""

    async def events() -> AsyncIterator[ImageEvent]:
        yield PartialImage(type=PARTIAL, image=Image(PNG))
        raise KeyError("hunter2")

    (first, _), (last, body) = await collect(web.ServerSentEvents(events()))
    assert (first, last) == (PARTIAL, "error")
    assert body["error"]["type"] == "InternalError"
    assert body["error"]["billing"] == "unknown"
    assert "hunter2" not in json.dumps(body)
    (logged,) = [record for record in caplog.records if record.name == "elkimg_async"]
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], KeyError)


async def test_error_of_an_event_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """What a generator gives instead of an event is an error event, not a broken response."""

    async def events() -> AsyncIterator[Any]:
        yield CompletedImage(type=COMPLETED, image=Image(PNG), size=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    ((name, body),) = await collect(web.ServerSentEvents(events()))
    assert (name, body["error"]["type"]) == ("error", "InternalError")
    assert caplog.records


@pytest.mark.parametrize(
    "kind", [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
)
async def test_error_body_of_every_error(kind: type[errors.ElkImagesError]) -> None:
    """Each error of the package has a plain sentence, its own name, and nothing of its text where
    it is not about the request.
    """
    body = web.error_body(kind(SECRET))["error"]
    assert body["type"] == kind.__name__
    assert body["message"] == (body["message"] or "").strip()
    assert "10.1.2.3" not in str(body)

    class Special(kind):  # type: ignore[misc, valid-type]
        """A subclass of a user's own."""

    assert web.error_body(Special("x"))["error"]["type"] == kind.__name__


@pytest.mark.parametrize(
    "words",
    [
        "Post https://upstream.example/v1: EOF",
        "dial tcp 10.0.0.7: refused",
        "no route to [fd00::1]",
        "see images.internal for more",
        "gateway:8080 said no",
        "key sk-abc",
        "Bearer abc",
        "organization org-abc must be verified",
        "asked localhost",
    ],
)
async def test_error_body_withholds_words_with_an_address_or_a_key(words: str) -> None:
    """Upstream's words are withheld when they may point at something inside."""
    body = web.error_body(errors.BadRequestError(words))["error"]
    assert body["message"] == "The image service rejected the request."


@pytest.mark.parametrize(
    "words",
    [
        "The server said no (status 400, invalid_value): Invalid value: 'huge'.",
        "gpt-image-1.5 takes sizes such as 1024x1024, at a ratio of at most 3:1.",
        "内容不符合规定。",
    ],
)
async def test_error_body_keeps_words_about_the_request(words: str) -> None:
    """Words about models, sizes and values are no addresses."""
    assert web.error_body(errors.BadRequestError(words))["error"]["message"] == words


async def test_error_body_says_when_to_try_again() -> None:
    """A rate limit tells the seconds to wait, where they are known."""
    told = web.error_body(errors.RateLimitError("x", retry_after=12.4))["error"]["message"]
    assert told == "Too many images are being requested; try again in 12 s."
    untold = web.error_body(errors.RateLimitError("x"))["error"]["message"]
    assert untold == "Too many images are being requested; try again in a while."


# --- browsers that leave, or do not read ------------------------------------


@in_each_way
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("stall-headers", b"retry"),
        ("stall-body=2000", b"retry"),
        ("stall-stream=2", b'"partial_image_index":1'),
        ("endless-pings", b"retry"),
    ],
)
async def test_disconnect_closes_upstream(
    name: str, fault: str, seen: bytes, upstream: LocalServer
) -> None:
    """A browser that leaves closes upstream within a second: before its answer, within an event,
    between two.
    """
    upstream.inject(fault)
    async with backend(name, upstream) as port, Browser.at(port) as browser:
        await browser.read_until(seen)
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        took = await browser.leave(upstream)
    print(f"{name}, {fault}: {took * 1000:.0f} ms")
    assert took < 1


@in_each_way
async def test_disconnect_of_a_browser_that_does_not_read(name: str) -> None:
    """A browser that reads nothing holds upstream back, and one that leaves then closes it within a
    second.
    """
    frames = [event({"type": PARTIAL, "b64_json": base64.b64encode(BIG).decode()})] * 30
    async with (
        RawServer([*open_stream(*frames), End.HOLD]) as raw_server,
        backend(name, raw_server, send_buffer=65536, heartbeat=0.05) as port,
        Browser.at(port, receive_buffer=65536) as browser,
    ):
        await browser.read_until(b"b64_json")
        await settled(lambda: waiting_bytes(raw_server))
        assert waiting_bytes(raw_server) > 20_000_000
        took = await browser.leave(raw_server)
    print(f"{name}, not reading: {took * 1000:.0f} ms")
    assert took < 1


def waiting_bytes(raw_server: RawServer) -> int:
    """What upstream could not send yet."""
    return sum(each.transport.get_write_buffer_size() for each in raw_server._open)


async def settled(state: Callable[[], object]) -> None:
    """Wait until something has stayed as it is for a fifth of a second."""
    async with asyncio.timeout(10):
        before = None
        while before != (before := state()):
            await asyncio.sleep(0.2)


@in_each_way
async def test_back_pressure_reads_no_further_than_the_browser(name: str) -> None:
    """While a browser does not read, at most three events of 1 MiB are taken; when it reads, all 20
    arrive.
    """
    taken = 0

    async def many(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        nonlocal taken
        for index in range(20):
            taken += 1
            yield PartialImage(type=PARTIAL, image=Image(BIG), partial_image_index=index)

    async with (
        RawServer([End.HOLD]) as raw_server,
        backend(name, raw_server, many, send_buffer=65536, heartbeat=0.05) as port,
        Browser.at(port, receive_buffer=65536) as browser,
    ):
        await browser.read_until(b"b64_json")
        await settled(lambda: taken)
        assert taken <= 3
        assert await browser.read_rest() > 20 * len(BIG) * 4 / 3 - 200_000
        assert taken == 20


async def test_disconnect_through_middleware(upstream: LocalServer) -> None:
    """Behind Starlette's middlewares, gzip among them, events come at once, and leaving closes
    upstream.
    """

    async def add_header(
        request: starlette.requests.Request,
        call_next: Callable[[starlette.requests.Request], Awaitable[Response]],
    ) -> Response:
        response = await call_next(request)
        response.headers["X-Seen"] = "yes"
        return response

    app = with_fastapi(lambda: client_of(upstream), generated)
    wrapped = GZipMiddleware(BaseHTTPMiddleware(app, dispatch=add_header))
    upstream.inject("stall-stream=1")
    async with on_uvicorn(wrapped) as port, Browser.at(port) as browser:
        await browser.read_until(b'"partial_image_index":0')
        assert b"x-seen: yes" in browser.seen
        assert await browser.leave(upstream) < 1


async def test_disconnect_on_a_server_of_a_later_asgi(upstream: LocalServer) -> None:
    """A server that claims ASGI 2.4, where Starlette no longer listens, still notices that the
    browser left.
    """
    app = with_starlette(lambda: client_of(upstream), generated)

    async def later(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["asgi"]["spec_version"] = "2.4"
        await app(scope, receive, send)

    upstream.inject("stall-headers")
    async with on_uvicorn(later) as port, Browser.at(port) as browser:
        await browser.read_until(b"retry")
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        assert await browser.leave(upstream) < 1


async def test_disconnect_noticed_by_send(upstream: LocalServer) -> None:
    """A server whose `send` raises OSError for a browser that has left gets no exception back."""
    sent: list[Message] = []

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: Message) -> None:
        if len(sent) == 4:
            raise OSError
        sent.append(message)

    upstream.inject("stall-stream=1")
    async with client_of(upstream) as client:
        response = web.starlette_response(generated(client, "cat"), heartbeat=0.05)
        await response({"type": "http", "method": "GET"}, receive, send)
        await upstream.wait_disconnected()
    assert sent[0]["status"] == 200


async def test_disconnect_closes_a_generator(upstream: LocalServer) -> None:
    """A generator between the stream and the relay is closed, and its `finally` may wait."""
    closed = asyncio.Event()

    async def kept(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        try:
            async with generated(client, prompt) as opened:
                async for each in opened:
                    yield each
        finally:
            await asyncio.sleep(0.01)
            closed.set()

    upstream.inject("stall-stream=1")
    async with backend("fastapi", upstream, kept) as port, Browser.at(port) as browser:
        await browser.read_until(b'"partial_image_index":0')
        await browser.leave(upstream)
        await asyncio.wait_for(closed.wait(), 1)


@pytest.mark.parametrize("waiting", [False, True])
async def test_relay_dropped_without_being_closed(waiting: bool, upstream: LocalServer) -> None:
    """A framework that just forgets the relay, even while an event is awaited, closes upstream."""
    upstream.inject("stall-stream=1")
    async with client_of(upstream) as client:
        relay = web.ServerSentEvents(generated(client, "cat"), heartbeat=0.02)
        piece = b""
        while not piece.endswith(b'"}\n\n'):
            piece = await anext(relay)
        if waiting:
            assert await anext(relay) == b": ping\n"
        del relay
        async with asyncio.timeout(1):
            await upstream.wait_disconnected()


async def test_relay_cancelled_closes_upstream(upstream: LocalServer) -> None:
    """Whoever is cancelled while waiting for the next piece leaves nothing open."""
    upstream.inject("stall-headers")
    async with client_of(upstream) as client:
        relay = web.ServerSentEvents(generated(client, "cat"))
        await anext(relay)
        waiting = asyncio.ensure_future(anext(relay))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(1):
            await upstream.wait_disconnected()
        await relay.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(relay)


async def test_relay_response_never_sent_sends_nothing_upstream(upstream: LocalServer) -> None:
    """A response that is created and thrown away costs nothing, and warns of nothing."""
    async with client_of(upstream) as client:
        web.starlette_response(generated(client, "cat"))
    assert not upstream.requests


# --- shutdown ---------------------------------------------------------------


async def test_shutdown_of_aiohttp(upstream: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    """Aiohttp's server ends a relay after its `shutdown_timeout`, and nobody complains."""
    upstream.inject("stall-stream=1")
    async with contextlib.AsyncExitStack() as stack:
        async with backend("aiohttp", upstream) as port:
            browser = await stack.enter_async_context(Browser.at(port))
            await browser.read_until(b'"partial_image_index":0')
        await upstream.wait_disconnected()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_shutdown_of_uvicorn_waits_for_the_end() -> None:
    """Uvicorn without a limit lets a relay end before it goes."""
    finish = asyncio.Event()
    head, *rest = stream(event({"type": COMPLETED, "b64_json": B64}), DONE)
    async with RawServer([head, finish, *rest]) as raw_server, contextlib.AsyncExitStack() as stack:
        async with backend("fastapi", raw_server) as port:
            browser = await stack.enter_async_context(Browser.at(port))
            await browser.read_until(b"retry")
            asyncio.get_running_loop().call_later(0.2, finish.set)
        await browser.read_until(b"[DONE]")


async def test_shutdown_of_uvicorn_with_a_limit(upstream: LocalServer) -> None:
    """After its `timeout_graceful_shutdown` uvicorn cancels a relay: upstream is closed, no task is
    left.
    """
    upstream.inject("stall-stream=1")
    app = with_fastapi(lambda: client_of(upstream), generated)
    logging.getLogger("uvicorn.error").disabled = True  # it tells each request that it cancels
    try:
        async with contextlib.AsyncExitStack() as stack:
            async with on_uvicorn(app, timeout_graceful_shutdown=1) as port:
                browser = await stack.enter_async_context(Browser.at(port))
                await browser.read_until(b'"partial_image_index":0')
            await upstream.wait_disconnected()
    finally:
        logging.getLogger("uvicorn.error").disabled = False


# --- the module -------------------------------------------------------------


async def test_import_needs_no_framework() -> None:
    """Importing the module imports neither Starlette nor FastAPI, nor aiohttp; the package does not
    import it.
    """
    script = (
        "import sys, elkimg_async; assert 'elkimg_async.web' not in sys.modules\n"
        "from elkimg_async import web\n"
        "print(*({'starlette', 'fastapi', 'aiohttp'} & set(sys.modules)))"
    )
    root = str(Path(elkimg_async.__file__).parent.parent)
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join([root, *sys.path])},
    )
    assert found.stdout.strip() == ""


async def test_starlette_missing(monkeypatch: pytest.MonkeyPatch, upstream: LocalServer) -> None:
    """Without Starlette, the response says what to install."""
    frameworks._response_class.cache_clear()
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    async with client_of(upstream) as client:
        stream = generated(client, "cat")
        with pytest.raises(errors.ConfigurationError, match="pip install starlette"):
            web.starlette_response(stream)
        await stream.aclose()
