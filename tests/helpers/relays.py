"""Backends that relay, and browsers of several kinds that read from them."""

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

import aiohttp
import fastapi
import pytest
import starlette.applications
import starlette.requests
import uvicorn
from aiohttp import web as aiohttp_web
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from elkimg_async import AsyncImages, web
from elkimg_async.local import LocalServer
from tests.helpers.calls import SOON
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    RawServer,
)

BIG = PNG + bytes(1024 * 1024)
COMPLETED = "image_generation.completed"
PARTIAL = "image_generation.partial_image"
B64 = base64.b64encode(PNG).decode()
Generate = Callable[[AsyncImages, str], Any]


def client_of(server: LocalServer | RawServer) -> AsyncImages:
    """Return a client of this server that does not retry."""
    key = server.api_key if isinstance(server, LocalServer) else API_KEY
    return AsyncImages(key, base_url=server.base_url, retry=0)


# --- backends: the recipes of the README, around whatever is to be tested ---


def generated(client: AsyncImages, prompt: str) -> Any:
    """Return what the backend relays unless a test says otherwise."""
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
    """Run the app on uvicorn in this loop; yield its port."""
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
    """Run the app on aiohttp's server in this loop; yield its port."""
    listening = listen(send_buffer)
    runner = aiohttp_web.AppRunner(app, shutdown_timeout=0.2, **config)
    await runner.setup()
    try:
        await aiohttp_web.SockSite(runner, listening).start()
        yield listening.getsockname()[1]
    finally:
        await runner.cleanup()


def listen(send_buffer: int) -> socket.socket:
    """Return a listening socket whose connections have this send buffer; 0 for the default."""
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
    """Run one of the backends; yield its port."""

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
    """A client that reads bytes only on request, and may leave."""

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
        async with asyncio.timeout(SOON):
            await server.wait_disconnected()
        return time.monotonic() - started


async def fetch(port: int) -> tuple[aiohttp.ClientResponse, str]:
    """Return a complete response as a browser receives it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/picture?prompt=cat") as response,
    ):
        return response, await response.text()


def parse(text: str) -> list[tuple[str, Any]]:
    """Return the events that a browser passes to a page, by the rules of WHATWG."""
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
    """Return the events of a relay, without any framework."""
    try:
        return parse(b"".join([chunk async for chunk in relay]).decode())
    finally:
        await relay.aclose()


async def relayed(server: LocalServer | RawServer, **options: Any) -> list[tuple[str, Any]]:
    """Return what a browser receives of one stream from this server."""
    async with client_of(server) as client:
        return await collect(web.ServerSentEvents(generated(client, "cat"), **options))
