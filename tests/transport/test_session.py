"""Closing while anything is in flight, idle connections, and versions of aiohttp."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest

from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    DisconnectedError,
    DownloadError,
    ElkImagesError,
    Limits,
)
from elkimg_async.transport import pool
from elkimg_async.transport.pool import Hosts
from tests.helpers.calls import GOOD, PARTIAL, SOON, check_clean, run_call
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    Piece,
    RawServer,
    Reply,
    head,
    open_stream,
    response,
)

BODY: Reply = [head(200, Content_Length="1000"), b'{"data": [{"b64', End.HOLD]
IN_FLIGHT: dict[str, Reply] = {
    "headers": [End.HOLD],
    "body": BODY,
    "stream": [*open_stream(PARTIAL), End.HOLD],
    "error body": [head(503, Content_Length="1000"), b'{"error": ', End.HOLD],
}


async def failure_of(call: Awaitable[Any]) -> ElkImagesError:
    with pytest.raises(ElkImagesError) as caught:
        await call
    check_clean(caught.value)
    return caught.value


# --- closing ----------------------------------------------------------------


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
@pytest.mark.parametrize("streaming", [False, True], ids=["batch", "stream"])
@pytest.mark.parametrize("waits_for", IN_FLIGHT)
async def test_aclose_fails_calls_in_flight(
    waits_for: str, streaming: bool, borrowed: bool
) -> None:
    """A call that waits for headers or more of a body fails at once and disconnects."""
    async with RawServer(IN_FLIGHT[waits_for]) as raw_server, aiohttp.ClientSession() as session:
        client = AsyncImages(
            API_KEY, base_url=raw_server.base_url, session=session if borrowed else None, retry=0
        )
        task = asyncio.create_task(failure_of(run_call(client, streaming)))
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        await asyncio.sleep(0.02)
        started = time.monotonic()
        await client.aclose()
        error = await task
        assert time.monotonic() - started < SOON
        assert type(error) is ConfigurationError
        assert "closed" in str(error)
        assert error.billing == ("refused" if waits_for == "error body" else "unknown")
        await raw_server.wait_disconnected()


async def test_aclose_fails_a_stream_between_events() -> None:
    """A stream that is not read disconnects, and fails when it is read again."""
    async with RawServer(IN_FLIGHT["stream"]) as raw_server, aiohttp.ClientSession() as session:
        for options in ({}, {"session": session}):
            client = AsyncImages(API_KEY, base_url=raw_server.base_url, **options)  # type: ignore[arg-type]
            async with client.generate("a boat", stream=True) as stream:
                await anext(stream)
                await client.aclose()
                await raw_server.wait_disconnected()
                error = await failure_of(anext(stream))
            assert type(error) is ConfigurationError


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
async def test_aclose_fails_an_upload(borrowed: bool) -> None:
    """A call whose upload the server does not read fails at once."""
    async with (
        RawServer(GOOD, reading=False) as deaf,
        aiohttp.ClientSession() as session,
        AsyncImages(
            API_KEY, base_url=deaf.base_url, session=session if borrowed else None
        ) as client,
    ):
        call = client.generate("a boat", extra_body={"padding": "x" * 30_000_000})
        task = asyncio.create_task(failure_of(call))
        await deaf.wait_until(lambda: deaf.connections == 1)
        await asyncio.sleep(0.05)
        async with asyncio.timeout(SOON):
            await client.aclose()
            assert type(await task) is ConfigurationError
        deaf.read_on()
        await deaf.wait_disconnected()


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
async def test_aclose_fails_calls_waiting_for_a_connection(
    monkeypatch: pytest.MonkeyPatch, borrowed: bool
) -> None:
    """A call that waits for a free connection fails at once, and nothing of it was sent."""
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    async with (
        RawServer([End.HOLD]) as raw_server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
    ):
        client = AsyncImages(
            API_KEY, base_url=raw_server.base_url, session=session if borrowed else None
        )
        tasks = [asyncio.create_task(failure_of(run_call(client))) for _ in range(3)]
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        await asyncio.sleep(0.02)
        async with asyncio.timeout(SOON):
            await client.aclose()
            errors = await asyncio.gather(*tasks)
        assert {type(error) for error in errors} == {ConfigurationError}
        assert sorted(error.billing for error in errors) == ["not_sent", "not_sent", "unknown"]
        assert len(raw_server.requests) == 1


@pytest.mark.parametrize("borrowed", [False, True], ids=["own", "borrowed"])
@pytest.mark.parametrize(
    "reply",
    [
        [End.HOLD],
        [head(200, "image/png", Content_Length="999"), PNG[:99], End.HOLD],
        response(b"", status=503, Retry_After="60"),
    ],
    ids=["headers", "body", "back-off"],
)
async def test_aclose_fails_a_download(reply: Reply, borrowed: bool) -> None:
    """A download fails at once, also before a repeated request; the image stays billed."""
    async with RawServer(reply) as host, aiohttp.ClientSession() as session:
        api = response({"data": [{"url": f"{host.origin}/a.png"}]})
        async with RawServer(api) as raw_server:
            client = AsyncImages(
                API_KEY, base_url=raw_server.base_url, session=session if borrowed else None
            )
            (image,) = await client.generate("a boat")
            task = asyncio.create_task(failure_of(image.read()))
            await host.wait_until(lambda: len(host.requests) == 1)
            await asyncio.sleep(0.02)
            async with asyncio.timeout(SOON):
                await client.aclose()
                error = await task
            assert type(error) is DownloadError
            assert "closed" in str(error)
            assert error.billing == "billed"


def test_aclose_fails_calls_in_other_threads() -> None:
    """Calls in other event loops also fail at once."""

    async def call(client: AsyncImages, streaming: bool) -> ElkImagesError:
        async with asyncio.timeout(10):
            return await failure_of(run_call(client, streaming))

    async def main() -> list[ElkImagesError]:
        async with RawServer(IN_FLIGHT["stream"]) as raw_server:
            client = AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0)
            with ThreadPoolExecutor(2) as threads:
                loop = asyncio.get_running_loop()
                ends = [
                    loop.run_in_executor(threads, asyncio.run, call(client, streaming))
                    for streaming in (False, True)
                ]
                await raw_server.wait_until(lambda: len(raw_server.requests) == 2)
                await asyncio.sleep(0.1)
                async with asyncio.timeout(SOON):
                    await client.aclose()
                    return list(await asyncio.gather(*ends))

    errors = asyncio.run(main())
    assert {type(error) for error in errors} == {ConfigurationError}


# --- idle connections -------------------------------------------------------


def test_hosts_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's time less a second is used; after a lost connection none is reused for a while."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    hosts = Hosts(4.0)
    assert hosts.keepalive("http://a") == 4.0
    for said, seconds in {
        "timeout=5": 4.0, "timeout=2, max=100": 1.0, "max=3, Timeout = 3": 2.0, "timeout=1": 0.5,
        "timeout=0": 0.0, "timeout=75": 4.0, "": 4.0, "timeout=x": 4.0,
    }.items():  # fmt: skip
        hosts.note_response("http://a", {"Keep-Alive": said})
        assert hosts.keepalive("http://a") == seconds, said
    hosts.note_lost("http://a")
    hosts.note_response("http://a", {"Keep-Alive": "timeout=75"})
    assert hosts.keepalive("http://a") == 0.0
    assert hosts.keepalive("http://b") == 4.0
    now += pool.FRESH_CONNECTIONS
    assert hosts.keepalive("http://a") == 4.0


def test_hosts_closed_connection() -> None:
    """A connection that the server closed earlier than it had announced means fresh ones."""
    hosts = Hosts(4.0)
    hosts.note_response("http://a", {"Keep-Alive": "timeout=2"})
    hosts.note_lost("http://a", idle=2.1)
    assert hosts.keepalive("http://a") == 1.0
    hosts.note_lost("http://b", idle=2.1)
    assert hosts.keepalive("http://b") == 0.0


async def pause_after(raw_server: RawServer, seconds: float, **options: Any) -> int:
    """Make two calls with a pause between them, and return how many connections that took."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, **options) as client:
        await client.generate("a boat")
        before = raw_server.accepted
        await client.generate("a boat")
        await asyncio.sleep(seconds)
        await client.generate("a boat")
        return raw_server.accepted - before


async def test_idle_connection_is_reused_within_its_time(raw_server: RawServer) -> None:
    """A server's `Keep-Alive: timeout=N` ends reuse before the server closes."""
    raw_server.reply_with([head_with(GOOD, "Keep-Alive: timeout=1"), *GOOD[1:]])
    assert await pause_after(raw_server, 0.0) == 0
    assert await pause_after(raw_server, 0.7) == 1
    raw_server.reply_with([head_with(GOOD, "Keep-Alive: timeout=60"), *GOOD[1:]])
    assert await pause_after(raw_server, 0.7) == 0


async def test_idle_connection_is_closed_after_keepalive_timeout(raw_server: RawServer) -> None:
    """`Limits(keepalive_timeout=…)` sets the time; 0 opens a connection for each request."""
    assert await pause_after(raw_server, 0.4, limits=Limits(keepalive_timeout=0.2)) == 1
    assert await pause_after(raw_server, 0.0, limits=Limits(keepalive_timeout=0)) == 2
    with pytest.raises(ConfigurationError, match="keepalive_timeout"):
        Limits(keepalive_timeout=-1)


def head_with(reply: Reply, line: str) -> bytes:
    """Return the head of a reply with a further header."""
    assert isinstance(reply[0], bytes)
    return reply[0].removesuffix(b"\r\n") + line.encode() + b"\r\n\r\n"


async def serve_once(closed: Callable[[], None]) -> asyncio.Server:
    """Start a server that closes each connection on a second request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for n in range(2):
                text = await reader.readuntil(b"\r\n\r\n")
                length = text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                if n == 0:
                    writer.writelines(piece for piece in GOOD if isinstance(piece, bytes))
            closed()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def test_lost_connection_means_fresh_ones(raw_server: RawServer) -> None:
    """After one request was lost on a kept connection, the next ones each get a new connection."""
    lost: list[None] = []
    server = await serve_once(lambda: lost.append(None))
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with AsyncImages(API_KEY, base_url=f"http://127.0.0.1:{port}/v1") as client:
            await client.generate("a boat")
            error = await failure_of(client.generate("a boat"))
            assert type(error) is DisconnectedError
            assert error.billing == "unknown"
            for _ in range(5):
                assert len(await client.generate("a boat")) == 1
    assert len(lost) == 1


async def test_connection_closed_while_idle(raw_server: RawServer) -> None:
    """A connection that the server has closed is not used, however soon the next call is."""
    ended = asyncio.Event()
    pieces: list[Piece] = [*GOOD, ended, End.CLOSE]
    raw_server.reply_with(pieces)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        for n in range(3):
            await client.generate("a boat")
            assert raw_server.accepted == n + 1
            ended.set()
            await raw_server.wait_until(lambda: raw_server.connections == 0)
            ended.clear()


async def test_idle_connection_closed_means_fresh_ones() -> None:
    """After the server closed one idle connection without notice, no other idle one is used."""
    closing, both = asyncio.Event(), asyncio.Event()
    async with (
        RawServer([both, *GOOD, closing, End.CLOSE], [both, *GOOD], GOOD) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
    ):
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(run_call(client))
            await raw_server.wait_until(lambda: len(raw_server.requests) == 2)
            both.set()
        closing.set()
        await raw_server.wait_until(lambda: raw_server.connections == 1)
        for n in range(3):
            await client.generate("a boat")
            assert raw_server.accepted == 3 + n


async def test_idle_connection_after_a_cancelled_call(raw_server: RawServer) -> None:
    """A connection that this side closes is no reason for fresh ones."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        await client.generate("a boat")
        for reply in ([End.HOLD], BODY):
            raw_server.reply_with(reply)
            seen = len(raw_server.requests)
            task = asyncio.create_task(client.generate("a boat"))
            await raw_server.wait_until(lambda seen=seen: len(raw_server.requests) > seen)  # type: ignore[misc]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            raw_server.reply_with(GOOD)
            await client.generate("a boat")
            accepted = raw_server.accepted
            await client.generate("a boat")
            assert raw_server.accepted == accepted


# --- versions ---------------------------------------------------------------


async def test_aiohttp_too_old(raw_server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An aiohttp that is too old is named on the first call, before anything is sent."""
    pool.check_aiohttp.cache_clear()
    monkeypatch.setattr(aiohttp, "__version__", "3.8.6")
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        error = await failure_of(client.generate("a boat"))
    assert type(error) is ConfigurationError
    assert "aiohttp 3.8.6 is too old" in str(error)
    assert raw_server.accepted == 0
