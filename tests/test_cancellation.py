"""Cancelling a call at each await of its path.

Each test names what was interrupted. Afterwards the server sees no connection of the call, no task
is left, and the next call on the same client works.
"""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elkimg_async import AsyncImages, Image, ImagesResponse, PartialImage, RetryPolicy
from elkimg_async.hooks import Record, RetryScheduled
from elkimg_async.transport import pool
from tests.helpers.calls import GOOD, PARTIAL, SOON, check_secret, in_both_modes, run_call
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    RawServer,
    Reply,
    _Connection,
    head,
    open_stream,
    response,
)

HALF = [head(200, Content_Length="1000"), b'{"data": [{"b64_json": "iVBOR', End.HOLD]


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Check that a test leaves no task behind."""
    before = running()
    yield
    await until(lambda: running() <= before)


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, timeout=10) as client:
        yield client


def running() -> "set[asyncio.Task[Any]]":
    """Return the tasks of this loop, without those of the test runner."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())}


async def until(condition: Callable[[], bool]) -> None:
    """Run the loop until `condition` holds."""
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0)


async def cancel(task: "asyncio.Task[Any]") -> None:
    """Cancel a task; check that it ends at once, without another use of the API key."""
    task.cancel()
    async with asyncio.timeout(SOON):
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    check_secret(caught.value)


async def check_works(client: AsyncImages, raw_server: RawServer) -> None:
    """Check that the client makes further calls, on a single new connection."""
    raw_server.reply_with(GOOD)
    accepted = raw_server.accepted
    for streaming in (False, True):
        _, result = await run_call(client, streaming)
        assert len(result) == 1
    assert raw_server.accepted == accepted + 1
    assert raw_server.connections == 1


@in_both_modes
async def test_call_cancelled_before_its_first_step(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A call that was cancelled before it began opens nothing."""
    task = asyncio.create_task(run_call(client, streaming))
    await cancel(task)
    assert raw_server.accepted == 0
    await check_works(client, raw_server)


@in_both_modes
async def test_call_cancelled_while_waiting_for_the_api_key(
    raw_server: RawServer, streaming: bool
) -> None:
    """A call that waits for its API key opens nothing."""
    requested = asyncio.Event()

    async def key() -> str:
        requested.set()
        if raw_server.accepted == 0 and not ready:
            await asyncio.get_running_loop().create_future()
        return API_KEY

    ready: list[bool] = []
    async with AsyncImages(key, base_url=raw_server.base_url) as client:
        task = asyncio.create_task(run_call(client, streaming))
        await requested.wait()
        await cancel(task)
        assert raw_server.accepted == 0
        ready.append(True)
        await check_works(client, raw_server)


@in_both_modes
async def test_waiting_for_the_pool(
    client: AsyncImages, raw_server: RawServer, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled wait for a connection leaves the queue, and the other calls get theirs."""
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    gate = asyncio.Event()
    raw_server.reply_with([gate, *GOOD])
    first = asyncio.create_task(run_call(client, streaming))
    await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    waiting = [begin(client, streaming) for _ in range(3)]
    await until(lambda: all(phase_of(call) == "connect" for _, call in waiting))
    await cancel(waiting[0][0])
    await cancel(waiting[2][0])
    assert len(raw_server.requests) == 1
    gate.set()
    assert len((await first)[1]) == len(await waiting[1][0]) == 1
    assert raw_server.accepted == raw_server.connections == 1
    raw_server.reply_with(GOOD)
    await run_call(client, streaming)
    assert raw_server.accepted == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's queue of connections")
@in_both_modes
async def test_call_cancelled_while_connecting(streaming: bool) -> None:
    """A call that waits for a TCP connection leaves no socket behind."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one; the kernel does not complete further connections
        listener.setblocking(False)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with AsyncImages(API_KEY, base_url=base_url) as client:
            before = open_sockets()
            task = asyncio.create_task(run_call(client, streaming))
            await until(lambda: len(open_sockets()) > len(before))
            await cancel(task)
            await until(lambda: open_sockets() == before)
            first.close()
            second.close()
            async with RawServer(GOOD) as raw_server:
                assert raw_server._server is not None
                serve = asyncio.get_running_loop().create_server
                server = await serve(lambda: _Connection(raw_server), sock=listener)
                await raw_server.wait_until(lambda: raw_server.accepted >= 1)
                await raw_server.wait_until(lambda: raw_server.connections == 0)  # the fillers
                await check_works(client, raw_server)
                server.close()


def open_sockets() -> set[str]:
    """Return the sockets of this process."""
    links = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.add(os.readlink(link))  # noqa: PTH115
        except OSError:
            continue
    return {link for link in links if link.startswith("socket:")}


@in_both_modes
async def test_uploading(streaming: bool) -> None:
    """A call whose server does not read resets its connection instead of waiting for it."""
    async with (
        RawServer(GOOD, reading=False) as deaf,
        AsyncImages(API_KEY, base_url=deaf.base_url) as client,
    ):
        task, call = begin(client, streaming, extra_body={"padding": "x" * 30_000_000})
        await until(lambda: phase_of(call) == "upload")
        await cancel(task)
        deaf.read_on()
        await deaf.wait_disconnected()
        assert not deaf.requests
        await check_works(client, deaf)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@in_both_modes
async def test_call_cancelled_while_uploading_through_a_borrowed_session(streaming: bool) -> None:
    """A borrowed session's connection is closed even if the server never reads on."""
    async with (
        RawServer(GOOD, reading=False) as deaf,
        aiohttp.ClientSession() as session,
        AsyncImages(API_KEY, base_url=deaf.base_url, session=session) as client,
    ):
        before = open_sockets()
        task, call = begin(client, streaming, extra_body={"padding": "x" * 30_000_000})
        await deaf.wait_until(lambda: deaf.connections == 1)
        await until(lambda: phase_of(call) == "upload")
        assert len(open_sockets() - before) == 2
        await cancel(task)
        await until(lambda: len(open_sockets() - before) <= 1)  # the server's own end
        deaf.read_on()
        await deaf.wait_disconnected()


@in_both_modes
@pytest.mark.parametrize(
    ("reply", "phase"), [([End.HOLD], "first_byte"), (HALF, "body")], ids=["headers", "body"]
)
async def test_call_cancelled_while_waiting_for_the_response(
    client: AsyncImages, raw_server: RawServer, reply: Reply, phase: str, streaming: bool
) -> None:
    """A call that waits for headers, or for more of the body, closes its connection."""
    raw_server.reply_with(reply)
    task, call = begin(client, streaming)
    await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    await until(lambda: phase_of(call) == phase)
    await cancel(task)
    await raw_server.wait_disconnected()
    assert len(raw_server.requests) == 1
    await check_works(client, raw_server)


def begin(
    client: AsyncImages, streaming: bool, **options: Any
) -> "tuple[asyncio.Task[ImagesResponse], Any]":
    """Return a running call, and the object that holds its phase."""
    if streaming:
        stream = client.generate("a boat", stream=True, **options)
        return asyncio.create_task(stream.result()), stream._source
    batch: Any = client.generate("a boat", **options)
    return asyncio.create_task(batch), batch.cr_frame.f_locals["self"]


def phase_of(call: Any) -> str | None:
    """Return the phase of the attempt; None before the first."""
    attempt = call._attempt
    return None if attempt is None or attempt._exchange is None else attempt._exchange.phase


@pytest.mark.parametrize("way", ["next", "result", "open"])
async def test_within_a_stream(client: AsyncImages, raw_server: RawServer, way: str) -> None:
    """A stream cancelled between two events, or while opening, closes its connection."""
    raw_server.reply_with([End.HOLD] if way == "open" else [*open_stream(PARTIAL), End.HOLD])
    seen = asyncio.Event()

    async def read() -> None:
        async with client.generate("a boat", stream=True) as stream:
            assert isinstance(await anext(stream), PartialImage)
            seen.set()
            await (anext(stream) if way == "next" else stream.result())

    task = asyncio.create_task(read())
    if way == "open":
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    else:
        await seen.wait()
    await cancel(task)
    await raw_server.wait_disconnected()
    await check_works(client, raw_server)


async def test_left_between_events(client: AsyncImages, raw_server: RawServer) -> None:
    """A task cancelled in the block of a stream closes the connection too."""
    raw_server.reply_with([*open_stream(PARTIAL), End.HOLD])
    seen = asyncio.Event()

    async def read() -> None:
        async with client.generate("a boat", stream=True) as stream:
            async for _ in stream:
                seen.set()
                await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(read())
    await seen.wait()
    await cancel(task)
    await raw_server.wait_disconnected()
    await check_works(client, raw_server)


@in_both_modes
async def test_waiting_for_the_retry(raw_server: RawServer, streaming: bool) -> None:
    """A call cancelled before its next attempt does not start it."""
    scheduled = asyncio.Event()

    def hook(record: Record) -> None:
        if isinstance(record, RetryScheduled):
            scheduled.set()

    # Not 429, whose Retry-After would delay the other call too.
    raw_server.reply_with([*response({"error": "busy"}, status=503, Retry_After="60")])
    policy = RetryPolicy(max_retries=5)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, hooks=[hook], retry=policy
    ) as client:
        task = asyncio.create_task(run_call(client, streaming))
        await scheduled.wait()
        await until(lambda: raw_server.connections == 1)
        await cancel(task)
        assert len(raw_server.requests) == 1
        raw_server.reply_with(GOOD)
        assert len(await client.generate("a boat")) == 1
        assert raw_server.accepted == 1


@in_both_modes
async def test_call_cancelled_within_an_error_response(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A call that reads the body of an error response closes its connection."""
    cut: Reply = [head(503, Content_Length="1000"), b'{"error": ', End.HOLD]
    raw_server.reply_with(cut)
    task = asyncio.create_task(run_call(client, streaming))
    await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    await cancel(task)
    await raw_server.wait_disconnected()
    await check_works(client, raw_server)


# --- images -----------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [[End.HOLD], [head(200, "image/png", Content_Length="999"), PNG[:99], End.HOLD]],
    ids=["headers", "body"],
)  # fmt: skip
async def test_save_cancelled_while_downloading(
    client: AsyncImages, raw_server: RawServer, reply: Reply, tmp_path: Path
) -> None:
    """A save that waits for its download writes nothing and can be repeated."""
    async with RawServer(reply) as host:
        raw_server.reply_with(response({"data": [{"url": f"{host.origin}/a.png"}]}))
        (image,) = await client.generate("a boat")
        task = asyncio.create_task(image.save(tmp_path / "boat"))
        await host.wait_until(lambda: len(host.requests) == 1)
        await cancel(task)
        await host.wait_disconnected()
        assert not list(tmp_path.iterdir())
        host.reply_with(response(PNG))
        assert (await image.save(tmp_path / "boat")).read_bytes() == PNG
        assert len(raw_server.requests) == 1
        raw_server.reply_with(GOOD)
        await run_call(client)
        assert raw_server.accepted == raw_server.connections == 1


async def test_save_cancelled_before_a_thread_is_free(tmp_path: Path) -> None:
    """A save that waits for a thread is cancelled at once, and writes nothing."""
    executor, go_on = ThreadPoolExecutor(1), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor)
    holder = loop.run_in_executor(None, go_on.wait)
    try:
        task = asyncio.create_task(Image(PNG).save(tmp_path / "boat"))
        await until(lambda: executor._work_queue.qsize() == 1)
        await cancel(task)
    finally:
        go_on.set()
        await holder
    assert not list(tmp_path.iterdir())
    assert (await Image(PNG).save(tmp_path / "boat")).read_bytes() == PNG


@pytest.mark.parametrize("old", [None, b"the old one"], ids=["new", "replaced"])
async def test_save_cancelled_while_writing(
    tmp_path: Path, old: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that is cancelled while it writes leaves the old file or the complete new one."""
    target = tmp_path / "boat.png"
    if old is not None:
        target.write_bytes(old)
    writing, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def held(descriptor: int) -> None:
        writing.set()
        assert go_on.wait(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", held)
    task = asyncio.create_task(Image(PNG).save(target))
    await until(writing.is_set)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (target.read_bytes() if target.exists() else None) == old
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not list(tmp_path.glob(".*")))
    assert (target.read_bytes() if target.exists() else None) in (old, PNG)


async def test_calls_cancelled_at_random_steps(client: AsyncImages, raw_server: RawServer) -> None:
    """After cancellation at any step of the event loop, the client still works."""
    raw_server.reply_with([head(200, Content_Length="1000"), b'{"data":', *[b" "] * 9, End.HOLD])
    for steps in range(40):
        task = asyncio.create_task(run_call(client, steps % 2 == 1))
        for _ in range(steps):
            await asyncio.sleep(0)
        await cancel(task)
        await raw_server.wait_until(lambda: raw_server.connections == 0)
    await check_works(client, raw_server)


@in_both_modes
async def test_call_cancelled_by_an_outer_timeout(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """An outer timeout stays a TimeoutError, and everything is released."""
    raw_server.reply_with([End.HOLD])
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.2):
            await run_call(client, streaming)
    assert type(caught.value) is TimeoutError
    await raw_server.wait_disconnected()
    await check_works(client, raw_server)
