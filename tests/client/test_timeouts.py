"""Time limits."""

import asyncio
import math
import socket
import sys
from typing import Any

import anyio
import anyio.from_thread
import pytest

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    ElkImagesError,
    Image,
    ImageStream,
    RateLimitError,
    RequestTimeoutError,
    Timeout,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    BODY,
    COMPLETED,
    GOOD,
    NO_RESPONSE,
    PARTIAL,
    check_clean,
    error_response,
    failure,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    REQUEST_ID,
    End,
    RawServer,
    Reply,
    head,
    open_stream,
    stream,
)

HEAD_ONLY: Reply = [head(200, Content_Length="1000"), End.HOLD]
HALF: Reply = [head(200, Content_Length=str(len(BODY))), BODY[:200], End.HOLD]
ONE_EVENT: Reply = [*open_stream(PARTIAL), End.HOLD]
PINGS: Reply = [*open_stream(b": PING\n\n"), End.HOLD]


@in_both_modes
@pytest.mark.parametrize(
    ("reply", "timeout", "limit", "phase"),
    [
        (NO_RESPONSE, 0.5, "total", "first_byte"),
        (HEAD_ONLY, 0.5, "total", "body"),
        (ONE_EVENT, 0.5, "total", "body"),
        (NO_RESPONSE, Timeout(first_byte=0.4), "first_byte", "first_byte"),
        (HEAD_ONLY, Timeout(idle=0.5), "idle", "body"),
        (HALF, Timeout(idle=0.5), "idle", "body"),
        (ONE_EVENT, Timeout(idle=0.5), "idle", "body"),
        (PINGS, Timeout(idle=0.4, first_byte=math.inf), "idle", "body"),
        (NO_RESPONSE, Timeout(total=0.4, first_byte=5, idle=5), "total", "first_byte"),
        (ONE_EVENT, Timeout(total=0.4, first_byte=5, idle=5), "total", "body"),
    ],
    ids=[
        "total-nothing", "total-head", "total-event", "first-byte", "idle-head", "idle-half",
        "idle-event", "idle-ping", "total-before-first-byte", "total-before-idle",
    ],
)  # fmt: skip
async def test_time_limit(
    raw_client: AsyncImages,
    raw_server: RawServer,
    reply: Reply,
    timeout: Any,
    limit: str,
    phase: str,
    streaming: bool,
) -> None:
    """The error names the limit and the phase of the call, and the connection is closed."""
    raw_server.reply_with(reply)
    error = await failure(RequestTimeoutError, raw_client, streaming, timeout=timeout)
    assert (error.limit, error.phase, error.billing) == (limit, phase, "unknown")
    assert error.request_id == (REQUEST_ID if phase == "body" else None)
    assert f"Timeout({limit}=" in str(error)
    assert isinstance(error, TimeoutError)
    assert error.attempts == len(raw_server.requests) == 1
    await raw_server.wait_disconnected()


@in_both_modes
async def test_time_limit_of_the_client(raw_server: RawServer, streaming: bool) -> None:
    """The client's limits apply to each call, unless the call has its own."""
    raw_server.reply_with(NO_RESPONSE)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, timeout=0.1) as client:
        assert (await failure(RequestTimeoutError, client, streaming)).limit == "total"
        options = {"timeout": Timeout(first_byte=0.1)}
        assert (
            await failure(RequestTimeoutError, client, streaming, **options)
        ).limit == "first_byte"


@in_both_modes
async def test_total_covers_all_attempts(raw_server: RawServer, streaming: bool) -> None:
    """The total covers attempts and delays; the last error or a timeout is raised."""
    raw_server.reply_with(error_response(429, Retry_After_Ms="50"))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=90, timeout=0.5) as client:
        with pytest.raises((RateLimitError, RequestTimeoutError)) as caught:
            await run_call(client, streaming)
    check_clean(caught.value)
    assert 1 < len(raw_server.requests) <= 10
    assert caught.value.attempts == len(raw_server.requests)


@in_both_modes
async def test_total_in_the_second_attempt(raw_server: RawServer, streaming: bool) -> None:
    """A second attempt has only the remaining time of the total."""
    raw_server.reply_with(error_response(429, Retry_After_Ms="1"), NO_RESPONSE)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, timeout=1) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.attempts, error.billing) == ("total", 2, "unknown")


@in_both_modes
async def test_time_limit_of_an_upload(streaming: bool) -> None:
    """A server that does not read the request cannot stall the call."""
    async with (
        RawServer(GOOD, reading=False) as stalled,
        AsyncImages(API_KEY, base_url=stalled.base_url, timeout=2) as client,
    ):
        extra = {"padding": "x" * 30_000_000}
        error = await failure(RequestTimeoutError, client, streaming, extra_body=extra)
        assert (error.limit, error.phase, error.billing) == ("total", "upload", "unknown")
        stalled.read_on()
        await stalled.wait_disconnected()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's queue of connections")
async def test_time_limit_of_connecting() -> None:
    """A host that does not accept connections is limited by `connect`; nothing was sent."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one; the kernel does not complete further connections
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        timeout = Timeout(connect=0.1)
        async with AsyncImages(API_KEY, base_url=base_url, timeout=timeout, retry=1) as client:
            error = await failure(RequestTimeoutError, client)
    assert (error.limit, error.phase, error.billing) == ("connect", "connect", "not_sent")
    assert error.attempts == 2


@in_both_modes
@pytest.mark.parametrize("count", [False, True])
async def test_pings_alone(server: LocalServer, count: bool, streaming: bool) -> None:
    """A stream of only pings is idle, unless `pings_count` is set."""
    server.inject("endless-pings")
    timeout = Timeout(total=2, idle=0.5, pings_count=count)
    async with AsyncImages(server.api_key, base_url=server.base_url, timeout=timeout) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert error.limit == ("total" if count else "idle")


async def test_time_between_reads_is_not_idle(
    raw_client: AsyncImages, raw_server: RawServer
) -> None:
    """The idle limit applies to waits for the server, not to work between events."""
    gate = asyncio.Event()
    raw_server.reply_with([*open_stream(PARTIAL), gate, *stream(COMPLETED)[1:]])
    async with raw_client.generate("a boat", stream=True, timeout=Timeout(idle=0.05)) as opened:
        await anext(opened)
        gate.set()
        with anyio.move_on_after(0.15):  # work between two events
            await anyio.sleep_forever()
        assert isinstance(await anext(opened), CompletedImage)


@in_both_modes
async def test_outer_timeout(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """An outer timeout raises its own exception, and closes the connection."""
    raw_server.reply_with(NO_RESPONSE)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await run_call(raw_client, streaming)
    assert not isinstance(caught.value, ElkImagesError)
    await raw_server.wait_disconnected()
    with anyio.move_on_after(0.1) as scope:
        await run_call(raw_client, streaming)
    assert scope.cancelled_caught
    await raw_server.wait_disconnected()


@in_both_modes
async def test_time_limit_before_the_request(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """Nothing is billed if the time is up before an input has been read."""
    image = Image(url="https://images.example/a.png")

    async def never(url: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    image.download_with(never)
    call = raw_client.edit(image, "a hat", stream=streaming, timeout=0.2)
    with pytest.raises(RequestTimeoutError) as caught:
        await (call.result() if isinstance(call, ImageStream) else call)
    assert (caught.value.limit, caught.value.billing) == ("total", "not_sent")
    assert caught.value.attempts == raw_server.accepted == 0
