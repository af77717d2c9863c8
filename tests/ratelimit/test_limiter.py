"""The limiter shared by all calls of a client, over sockets, loops and threads."""

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from elkimg_async import AsyncImages, Limits, RetryPolicy, Timeout
from elkimg_async.errors import (
    ConfigurationError,
    ElkImagesError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from elkimg_async.local import LocalServer
from elkimg_async.local.faults import FAULTS
from elkimg_async.ratelimit.limiter import Limiter
from tests.helpers.calls import SOON
from tests.helpers.raw_server import API_KEY, End, RawServer, event, open_stream, response, stream

GOOD = response({"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]})
UNAUTHORIZED = response({"error": {"message": "no"}}, status=401)
OVERLOADED = response({"error": {"message": "busy"}}, status=503, retry_after="1")
QUOTA = response({"error": {"message": "no credit", "code": "insufficient_quota"}}, status=429)
BUSY = response({"error": {"message": "slow down"}}, status=429)
SLOW_FAULTS = {name for name in FAULTS if "stall" in name} | {
    "drip",
    "gzip-bomb",
    "split",
    "refuse",
    "trickle",
}
in_both_modes = pytest.mark.parametrize("streaming", [False, True], ids=["batch", "stream"])


def limiter_of(client: AsyncImages) -> Limiter:
    """Return the limiter of a client."""
    limiter = client._settings.limiter
    assert isinstance(limiter, Limiter)
    return limiter


async def call(client: AsyncImages, streaming: bool, prompt: str = "A kitten") -> None:
    """Make one call in either mode, to its end."""
    if streaming:
        async with client.generate(prompt, stream=True) as stream:
            await stream.result()
    else:
        await client.generate(prompt)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0.02) as server:
        yield server


def assert_empty(limiter: Limiter) -> None:
    """Check that no slot is lost and no call waits."""
    assert (limiter.in_flight, limiter.waiting) == (0, 0)


@in_both_modes
async def test_max_concurrency_is_never_exceeded(server: LocalServer, streaming: bool) -> None:
    """Requests open at the server stay within the limit, and all are made; views count too."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            open_now = sum(seen.outcome == "open" for seen in server.requests)
            most = max(most, open_now)
            await server._changed.wait()

    watching = asyncio.create_task(watch())
    limits = Limits(max_concurrency=3)
    async with AsyncImages(server.api_key, base_url=server.base_url, limits=limits) as client:
        view = client.with_options(timeout=50)
        await asyncio.gather(*(call(each, streaming) for each in [client, view] * 6))
        assert_empty(limiter_of(client))
    watching.cancel()
    assert most == 3
    assert server.generations == 12


async def test_queue_is_first_come_first_served() -> None:
    """Requests leave in the order of their calls, those of many images too."""
    async with RawServer(GOOD) as raw_server:
        limits = Limits(max_concurrency=1, images_per_minute=60_000)
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
            await asyncio.gather(
                *(client.generate(str(index), n=10 if index % 3 else 1) for index in range(12))
            )
        assert [request.fields["prompt"] for request in raw_server.requests] == [
            str(index) for index in range(12)
        ]


async def test_retry_after_pauses_all_calls_once() -> None:
    """A Retry-After of one call holds back all that start after it, once."""
    async with RawServer(
        response({"error": {"message": "slow"}}, status=429, retry_after_ms="400"), GOOD
    ) as raw_server:
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            first = asyncio.create_task(client.generate("first"))
            await until(lambda: limiter_of(client)._paused_until > 0)
            began = time.monotonic()
            await asyncio.gather(first, *(client.generate("later") for _ in range(3)))
            assert 0.3 < time.monotonic() - began < SOON
        assert len(raw_server.requests) == 5


@in_both_modes
async def test_timeout_while_waiting_leaves_no_trace(streaming: bool) -> None:
    """Waiting counts towards `total`; a call that never started was not sent."""
    async with RawServer([End.HOLD]) as raw_server:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
            holder = asyncio.create_task(client.generate("holds the slot"))
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            with pytest.raises(RequestTimeoutError) as caught:
                await call(client.with_options(timeout=0.05), streaming)
            error = caught.value
            assert (error.limit, error.phase, error.billing) == ("total", "queue", "not_sent")
            assert error.attempts == 0
            assert (limiter_of(client).waiting, limiter_of(client).in_flight) == (0, 1)
            holder.cancel()
            await asyncio.gather(holder, return_exceptions=True)
            assert_empty(limiter_of(client))
        assert len(raw_server.requests) == 1


@in_both_modes
async def test_cancellation_while_waiting_keeps_no_slot(streaming: bool) -> None:
    """A call cancelled while it waits, or just as it starts, does not keep a slot."""
    async with RawServer([End.HOLD]) as raw_server:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
            limiter = limiter_of(client)
            tasks = [asyncio.create_task(call(client, streaming)) for _ in range(4)]
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            await until(lambda: limiter.waiting == 3)
            tasks[2].cancel()  # in the queue
            await until(lambda: limiter.waiting == 2)
            tasks[0].cancel()
            await until(
                lambda: limiter.waiting == 1
            )  # the slot is the second's: take it back at once
            tasks[1].cancel()
            await raw_server.wait_until(lambda: len(raw_server.requests) >= 2)
            tasks[3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert_empty(limiter)


async def test_stream_holds_its_slot_until_closed() -> None:
    """An open stream is in flight even if nobody reads it; closing or dropping ends that."""
    async with RawServer([*open_stream(b"data: {}\n\n"), End.HOLD]) as raw_server:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
            limiter = limiter_of(client)
            opened = await client.generate("one", stream=True)
            second = asyncio.create_task(_opened(client))
            await until(lambda: limiter.waiting == 1)
            await opened.aclose()
            stream = await second
            assert limiter.in_flight == 1
            del stream, second
            await until(lambda: limiter.in_flight == 0)
            assert_empty(limiter)


async def _opened(client: AsyncImages) -> object:
    return await client.generate("two", stream=True)


@in_both_modes
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in SLOW_FAULTS])
async def test_fault_keeps_no_slot(server: LocalServer, fault: str, streaming: bool) -> None:
    """However an attempt ends, its slot is released."""
    limits = Limits(max_concurrency=1)
    timeout = Timeout(total=20, first_byte=1, idle=1)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, limits=limits, timeout=timeout, retry=0
    ) as client:
        server.inject(fault)
        with contextlib.suppress(ElkImagesError):
            await call(client, streaming)
        assert_empty(limiter_of(client))


async def test_backoff_holds_no_slot() -> None:
    """While one call backs off, another uses its slot."""
    retry = RetryPolicy(1, initial_backoff=30, max_backoff=30)
    overloaded = response({"error": {"message": "down"}}, status=500)
    async with RawServer(overloaded, GOOD) as raw_server:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(
            API_KEY, base_url=raw_server.base_url, limits=limits, retry=retry, timeout=60
        ) as client:
            failing = asyncio.create_task(client.generate("waits"))
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            await until(lambda: limiter_of(client).in_flight == 0)
            await client.generate("goes")
            failing.cancel()
            await asyncio.gather(failing, return_exceptions=True)


async def test_rate_limit_error_limits_the_pace() -> None:
    """A 429 limits the pace, inside a stream too; a 401, a 503 and an exhausted quota do not."""
    said = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limited"}}
    inside = stream(event(said, name="error"))
    replies = [
        (UNAUTHORIZED, False), (OVERLOADED, False), (QUOTA, False), (BUSY, True), (inside, True),
    ]  # fmt: skip
    for reply, slower in replies:
        async with (
            RawServer(reply) as raw_server,
            AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
        ):
            with pytest.raises(ElkImagesError):
                await call(client, streaming=True)
            assert (limiter_of(client).rate < math.inf) is slower


async def test_remaining_zero_waits_for_reset() -> None:
    """After `remaining: 0` nothing is sent before the reset."""
    tight = response(
        {"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]},
        x_ratelimit_limit_requests="10",
        x_ratelimit_remaining_requests="0",
        x_ratelimit_reset_requests="100s",
    )
    async with RawServer(tight) as raw_server:
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            await client.generate("one")
            with pytest.raises(RequestTimeoutError) as caught:
                await client.generate("two", timeout=0.05)
            assert caught.value.phase == "queue"
        assert len(raw_server.requests) == 1


@in_both_modes
async def test_close_fails_waiting_calls(streaming: bool) -> None:
    """Closing the client fails waiting and later calls, with the reason."""
    async with RawServer([End.HOLD]) as raw_server:
        limits = Limits(max_concurrency=1)
        client = AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits)
        tasks = [asyncio.create_task(call(client, streaming)) for _ in range(3)]
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        await until(lambda: limiter_of(client).waiting == 2)
        await client.aclose()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, ConfigurationError)
            assert "closed" in str(error)
        with pytest.raises(ConfigurationError, match="closed"):
            await call(client, streaming)
        assert_empty(limiter_of(client))


def test_limiter_is_shared_by_loops() -> None:
    """Calls of loops in several threads are limited together, and all of them start."""
    limiter = Limiter(max_concurrency=2)
    lock, running, most, done = threading.Lock(), 0, 0, 0

    async def one() -> None:
        nonlocal running, most, done
        permit = limiter.reserve(1)
        if permit.started is None:
            await limiter.wait(permit)
        with lock:
            running += 1
            most = max(most, running)
        await asyncio.sleep(0.005)
        with lock:
            running -= 1
            done += 1
        limiter.succeeded(permit)
        limiter.release(permit)

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(100)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (done, most) == (400, 2)
    assert_empty(limiter)


def test_ended_loop_holds_up_nobody() -> None:
    """A loop that has ended, and its waiting calls, hold up nobody in another one."""
    limiter = Limiter(max_concurrency=1)

    async def leave_waiting() -> None:
        limiter.reserve(1)  # never left: as if the process had forgotten it

        async def wait() -> None:
            await limiter.wait(limiter.reserve(1))

        task = asyncio.get_running_loop().create_task(wait())
        await until(lambda: limiter.waiting == 1)
        task.cancel()

    asyncio.run(leave_waiting())
    assert limiter.waiting == 0
    for permit in list(limiter._running):
        limiter.release(permit)
        limiter.release(permit)

    async def again() -> None:
        assert limiter.reserve(1).started is not None

    asyncio.run(again())
    assert limiter.in_flight == 1


async def test_waiting_calls_share_one_timer() -> None:
    """Ten thousand waiting calls need one timer, and each start a bounded amount of work."""
    loop = asyncio.get_running_loop()
    limiter = Limiter(max_concurrency=10)
    permits = [limiter.reserve(1) for _ in range(10_000)]
    await until(lambda: limiter.in_flight == 10)  # slow start spreads them
    work = 0
    real = limiter._advance

    def counted() -> None:
        nonlocal work
        work += 1
        real()

    limiter._advance = counted  # type: ignore[method-assign]

    async def through(index: int) -> None:
        permit = permits[index]
        if permit.started is None:
            await limiter.wait(permit)
        limiter.succeeded(permit)
        limiter.release(permit)

    timers = len(loop._scheduled)  # type: ignore[attr-defined]
    tasks = [loop.create_task(through(index)) for index in range(10, 10_000)]
    await asyncio.sleep(0)
    assert limiter.waiting == 9_990
    assert len(loop._scheduled) <= timers + 1  # type: ignore[attr-defined]
    for permit in permits[:10]:
        limiter.succeeded(permit)
        limiter.release(permit)
    await asyncio.gather(*tasks)
    assert work <= 4 * 10_000
    assert_empty(limiter)


async def test_explicit_limit_spreads_starts() -> None:
    """A limit per minute spreads the starts, and a late timer loses nothing."""
    limiter = Limiter(requests_per_minute=6000)
    times = []
    for _ in range(120):
        permit = limiter.reserve(1)
        if permit.started is None:
            await limiter.wait(permit)
        limiter.succeeded(permit)
        limiter.release(permit)
        times.append(permit.started or 0.0)
    # A burst of 61, and the other 59 at 99 in a second.
    assert 0.5 < times[-1] - times[0] < SOON


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_a_fork_starts_empty() -> None:
    """In the child the limiter is empty and its lock free, whatever the parent holds."""
    limiter = Limiter(max_concurrency=1)
    permit = limiter.reserve(1)
    with limiter._lock:
        child = os.fork()
        if child == 0:
            fresh = limiter.reserve(1)
            limiter.release(permit)
            good = fresh.started is not None and limiter.in_flight == 1
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert limiter.in_flight == 1


async def test_local_server_rate_limit_changes_without_headers() -> None:
    """The rate of the local server can change, and its headers can be switched off."""
    async with (
        LocalServer(
            light=True, delay=0, requests_per_minute=1, burst=1, rate_limit_headers=False
        ) as server,
        AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client,
    ):
        assert (await client.generate("one")).meta.rate_limit is None
        with pytest.raises(RateLimitError) as caught:
            await client.generate("two")
        assert caught.value.retry_after is None
        assert not any(name.startswith("x-ratelimit") for name in caught.value.headers)
        server.requests_per_minute = 600_000
        await client.generate("three")


def test_limits_reject_impossible_values() -> None:
    """Limits that let nothing through are rejected."""
    cases: list[dict[str, Any]] = [
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"requests_per_minute": 0},
        {"images_per_minute": -1},
    ]
    for wrong in cases:
        with pytest.raises(ConfigurationError):
            Limits(**wrong)


async def test_wait_beyond_the_deadline_fails_at_once() -> None:
    """A call held back by a Retry-After beyond its time limit fails at once."""
    reply = response({"error": {"message": "slow"}}, status=429, retry_after="60")
    async with (
        RawServer(reply) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
    ):
        with pytest.raises(RateLimitError):
            await client.generate("one")
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError, match="rate limit") as caught:
            await client.generate("two", timeout=30)
        error = caught.value
        assert time.monotonic() - began < SOON
        assert (error.limit, error.phase, error.billing) == ("total", "queue", "not_sent")
        assert_empty(limiter_of(client))


async def test_retry_after_pause_is_capped() -> None:
    """A Retry-After of a day pauses all calls, for two minutes at most."""
    for seconds, paused in [(100.0, 100.0), (86_400.0, 120.0)]:
        limiter = Limiter()
        began = time.monotonic()
        limiter.rate_limited(limiter.reserve(1), retry_after=seconds)
        assert limiter._paused_until - began == pytest.approx(paused, abs=5)


async def test_fast_responses_are_not_paced() -> None:
    """Without a 429 a few calls at a time are never delayed, and many soon reach full speed."""
    async with (
        RawServer(GOOD) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
    ):
        began = time.monotonic()
        await asyncio.gather(*(client.generate("A kitten") for _ in range(1000)))
        assert time.monotonic() - began < SOON  # 40 at the 25 per second of the beginning


async def test_outage_fails_fast() -> None:
    """While a server answers only 503, calls end within their back-off, with few retries in all."""
    async with RawServer(response({"error": {"message": "busy"}}, status=503)) as raw_server:
        began = time.monotonic()
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=2) as client:
            results = await asyncio.gather(
                *(client.generate("A kitten") for _ in range(210)), return_exceptions=True
            )
        assert time.monotonic() - began < 2 * SOON
        assert all(isinstance(result, ServerError) for result in results)
        assert len(raw_server.requests) <= 0.7 * 3 * 210
