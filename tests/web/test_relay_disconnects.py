"""Browsers that leave, stop reading or stay, and servers that shut down."""

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import starlette.applications
import starlette.requests
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from elkimg_async import AsyncImages, Image, PartialImage, web
from elkimg_async.local import LocalServer
from elkimg_async.sansio.decoder import ImageEvent
from tests.helpers.calls import SOON
from tests.helpers.raw_server import (
    DONE,
    End,
    RawServer,
    event,
    open_stream,
    stream,
)
from tests.helpers.relays import (
    B64,
    BIG,
    COMPLETED,
    PARTIAL,
    Browser,
    backend,
    client_of,
    generated,
    in_each_way,
    on_uvicorn,
    with_fastapi,
    with_starlette,
)

pytestmark = pytest.mark.usefixtures("quiet")

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
    """Upstream is closed soon after a disconnect, whatever it is sending."""
    upstream.inject(fault)
    async with backend(name, upstream) as port, Browser.at(port) as browser:
        await browser.read_until(seen)
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        took = await browser.leave(upstream)
    print(f"{name}, {fault}: {took * 1000:.0f} ms")
    assert took < SOON


@in_each_way
async def test_disconnect_of_a_browser_that_does_not_read(name: str) -> None:
    """A browser that reads nothing stops upstream, and closes it soon by leaving."""
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
    assert took < SOON


def waiting_bytes(raw_server: RawServer) -> int:
    """Return the number of bytes that upstream could not send yet."""
    return sum(each.transport.get_write_buffer_size() for each in raw_server._open)


async def settled(state: Callable[[], object]) -> None:
    """Wait until a state has not changed for a fifth of a second."""
    async with asyncio.timeout(10):
        before = None
        while before != (before := state()):
            await asyncio.sleep(0.2)


@in_each_way
async def test_back_pressure_reads_no_further_than_the_browser(name: str) -> None:
    """At most three events of 1 MiB are read ahead of a browser, which receives all 20."""
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
    """Behind Starlette's middlewares, such as gzip, events and disconnects pass at once."""

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
    """A server of ASGI 2.4, where Starlette does not listen, still notices a disconnect."""
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
    """A server whose `send` raises OSError after a disconnect receives no exception."""
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
    """Upstream is closed if a framework drops the relay, even while an event is awaited."""
    upstream.inject("stall-stream=1")
    async with client_of(upstream) as client:
        relay = web.ServerSentEvents(generated(client, "cat"), heartbeat=0.02)
        chunk = b""
        while not chunk.endswith(b'"}\n\n'):
            chunk = await anext(relay)
        if waiting:
            assert await anext(relay) == b": ping\n"
        del relay
        async with asyncio.timeout(SOON):
            await upstream.wait_disconnected()


async def test_relay_cancelled_closes_upstream(upstream: LocalServer) -> None:
    """A task that is cancelled while it waits for the next chunk leaves nothing open."""
    upstream.inject("stall-headers")
    async with client_of(upstream) as client:
        relay = web.ServerSentEvents(generated(client, "cat"))
        await anext(relay)
        waiting = asyncio.ensure_future(anext(relay))
        await upstream.wait_until(lambda: len(upstream.requests) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(SOON):
            await upstream.wait_disconnected()
        await relay.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(relay)


async def test_relay_response_never_sent_sends_nothing_upstream(upstream: LocalServer) -> None:
    """A response that is created and dropped sends nothing, and causes no warning."""
    async with client_of(upstream) as client:
        web.starlette_response(generated(client, "cat"))
    assert not upstream.requests


# --- shutdown ---------------------------------------------------------------


async def test_shutdown_of_aiohttp(upstream: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    """The server of aiohttp ends a relay after its `shutdown_timeout`, without a warning."""
    upstream.inject("stall-stream=1")
    async with contextlib.AsyncExitStack() as stack:
        async with backend("aiohttp", upstream) as port:
            browser = await stack.enter_async_context(Browser.at(port))
            await browser.read_until(b'"partial_image_index":0')
        await upstream.wait_disconnected()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_shutdown_of_uvicorn_waits_for_the_end() -> None:
    """A uvicorn without a limit waits for the end of a relay before it stops."""
    finish = asyncio.Event()
    head, *rest = stream(event({"type": COMPLETED, "b64_json": B64}), DONE)
    async with RawServer([head, finish, *rest]) as raw_server, contextlib.AsyncExitStack() as stack:
        async with backend("fastapi", raw_server) as port:
            browser = await stack.enter_async_context(Browser.at(port))
            await browser.read_until(b"retry")
            asyncio.get_running_loop().call_later(0.2, finish.set)
        await browser.read_until(b"[DONE]")


async def test_shutdown_of_uvicorn_with_a_limit(upstream: LocalServer) -> None:
    """After its `timeout_graceful_shutdown` uvicorn cancels a relay, which closes upstream."""
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
