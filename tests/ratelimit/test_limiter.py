"""The limiter: one door for all calls of a client, over sockets, loops and threads."""

import asyncio
import contextlib
import math
import os
import threading
import time
import timeit
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from elkimg_async import AsyncImages, Limits, RetryPolicy, Timeout
from elkimg_async.errors import (
    ConfigurationError,
    ElkImagesError,
    RateLimitError,
    RequestTimeoutError,
)
from elkimg_async.local import LocalServer
from elkimg_async.local.faults import FAULTS
from elkimg_async.ratelimit.limiter import Limiter
from tests.helpers.canned import KEY, Canned, End, answer, event, open_stream, stream

GOOD = answer({"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]})
WRONG_KEY = answer({"error": {"message": "no"}}, status=401)
BUSY = answer({"error": {"message": "slow down"}}, status=429)
SLOW_FAULTS = {name for name in FAULTS if "stall" in name} | {
    "drip",
    "gzip-bomb",
    "split",
    "refuse",
    "trickle",
}
in_both_modes = pytest.mark.parametrize("streaming", [False, True], ids=["batch", "stream"])


def limiter_of(client: AsyncImages) -> Limiter:
    """The limiter of a client."""
    limiter = client._settings.limiter
    assert isinstance(limiter, Limiter)
    return limiter


async def ask(client: AsyncImages, streaming: bool, prompt: str = "A kitten") -> None:
    """One call in either mode, to its end."""
    if streaming:
        async with client.generate(prompt, stream=True) as stream:
            await stream.result()
    else:
        await client.generate(prompt)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks go on until `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0.02) as server:
        yield server


def assert_empty(limiter: Limiter) -> None:
    """Nobody is in it: no slot is lost, and nobody waits."""
    assert (limiter.in_flight, limiter.waiting, limiter._loops) == (0, 0, {})


@in_both_modes
async def test_max_concurrency(server: LocalServer, streaming: bool) -> None:
    """Never more requests are open at the server than the limit, and all are made; views count too."""
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
        await asyncio.gather(*(ask(each, streaming) for each in [client, view] * 6))
        assert_empty(limiter_of(client))
    watching.cancel()
    assert most == 3
    assert server.generations == 12


async def test_first_come_first_served() -> None:
    """Requests leave in the order in which they were asked for, the heavy ones too."""
    async with Canned(GOOD) as canned:
        limits = Limits(max_concurrency=1, images_per_minute=60_000)
        async with AsyncImages(KEY, base_url=canned.base_url, limits=limits) as client:
            await asyncio.gather(
                *(client.generate(str(index), n=10 if index % 3 else 1) for index in range(12))
            )
        assert [request.fields["prompt"] for request in canned.requests] == [
            str(index) for index in range(12)
        ]


async def test_one_retry_after_pauses_all() -> None:
    """A Retry-After of one call holds back all that start after it, once."""
    async with Canned(
        answer({"error": {"message": "slow"}}, status=429, retry_after_ms="400"), GOOD
    ) as canned:
        async with AsyncImages(KEY, base_url=canned.base_url) as client:
            first = asyncio.create_task(client.generate("first"))
            await until(lambda: limiter_of(client)._pacer._paused_until > 0)
            began = time.monotonic()
            await asyncio.gather(first, *(client.generate("later") for _ in range(3)))
            assert 0.3 < time.monotonic() - began < 5
        assert len(canned.requests) == 5


@in_both_modes
async def test_timeout_in_the_queue(streaming: bool) -> None:
    """Waiting counts towards `total`; who waited in vain was not sent, and leaves no trace."""
    async with Canned([End.HOLD]) as canned:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(KEY, base_url=canned.base_url, limits=limits) as client:
            holder = asyncio.create_task(client.generate("holds the slot"))
            await canned.wait_until(lambda: len(canned.requests) == 1)
            with pytest.raises(RequestTimeoutError) as caught:
                await ask(client.with_options(timeout=0.05), streaming)
            error = caught.value
            assert (error.limit, error.phase, error.billing) == ("total", "queue", "not_sent")
            assert error.attempts == 0
            assert (limiter_of(client).waiting, limiter_of(client).in_flight) == (0, 1)
            holder.cancel()
            await asyncio.gather(holder, return_exceptions=True)
            assert_empty(limiter_of(client))
        assert len(canned.requests) == 1


@in_both_modes
async def test_cancellation_in_the_queue(streaming: bool) -> None:
    """Who is cancelled while waiting, or in the moment of getting the slot, does not keep it."""
    async with Canned([End.HOLD]) as canned:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(KEY, base_url=canned.base_url, limits=limits) as client:
            limiter = limiter_of(client)
            tasks = [asyncio.create_task(ask(client, streaming)) for _ in range(4)]
            await canned.wait_until(lambda: len(canned.requests) == 1)
            await until(lambda: limiter.waiting == 3)
            tasks[2].cancel()  # in the queue
            await until(lambda: limiter.waiting == 2)
            tasks[0].cancel()
            await until(
                lambda: limiter.waiting == 1
            )  # the slot is the second's: take it back at once
            tasks[1].cancel()
            await canned.wait_until(lambda: len(canned.requests) >= 2)
            tasks[3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert_empty(limiter)


async def test_stream_holds_its_slot_until_it_is_closed() -> None:
    """An open stream is in flight though nobody reads it; closing or dropping it lets the next one go."""
    async with Canned([*open_stream(b"data: {}\n\n"), End.HOLD]) as canned:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(KEY, base_url=canned.base_url, limits=limits) as client:
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
async def test_no_fault_keeps_a_slot(server: LocalServer, fault: str, streaming: bool) -> None:
    """However an attempt ends, its slot comes back."""
    limits = Limits(max_concurrency=1)
    timeout = Timeout(total=20, first_byte=1, idle=1)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, limits=limits, timeout=timeout, retry=0
    ) as client:
        server.inject(fault)
        with contextlib.suppress(ElkImagesError):
            await ask(client, streaming)
        assert_empty(limiter_of(client))


async def test_backoff_holds_no_slot() -> None:
    """While one call waits to try again, another has its slot."""
    retry = RetryPolicy(1, initial_backoff=30, max_backoff=30)
    overloaded = answer({"error": {"message": "down"}}, status=500)
    async with Canned(overloaded, GOOD) as canned:
        limits = Limits(max_concurrency=1)
        async with AsyncImages(
            KEY, base_url=canned.base_url, limits=limits, retry=retry, timeout=60
        ) as client:
            failing = asyncio.create_task(client.generate("waits"))
            await canned.wait_until(lambda: len(canned.requests) == 1)
            await until(lambda: limiter_of(client).in_flight == 0)
            await client.generate("goes")
            failing.cancel()
            await asyncio.gather(failing, return_exceptions=True)


async def test_refusal_slows_all_calls_down() -> None:
    """A 429 tells the limiter, and so does one inside a stream; a 401 does not."""
    said = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limited"}}
    inside = stream(event(said, name="error"))
    for reply, slower in [(WRONG_KEY, False), (BUSY, True), (inside, True)]:
        async with (
            Canned(reply) as canned,
            AsyncImages(KEY, base_url=canned.base_url, retry=0) as client,
        ):
            with pytest.raises(ElkImagesError):
                await ask(client, streaming=True)
            assert (limiter_of(client).rate < math.inf) is slower


async def test_headers_are_believed() -> None:
    """What an answer's rate-limit headers forbid is not sent."""
    tight = answer(
        {"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]},
        x_ratelimit_limit_requests="10",
        x_ratelimit_remaining_requests="0",
        x_ratelimit_reset_requests="100s",
    )
    async with Canned(tight) as canned:
        async with AsyncImages(KEY, base_url=canned.base_url) as client:
            await client.generate("one")
            with pytest.raises(RequestTimeoutError) as caught:
                await client.generate("two", timeout=0.05)
            assert caught.value.phase == "queue"
        assert len(canned.requests) == 1


@in_both_modes
async def test_closing_sends_waiters_away(streaming: bool) -> None:
    """A closed client refuses those in the queue and those who come, and says why."""
    async with Canned([End.HOLD]) as canned:
        limits = Limits(max_concurrency=1)
        client = AsyncImages(KEY, base_url=canned.base_url, limits=limits)
        tasks = [asyncio.create_task(ask(client, streaming)) for _ in range(3)]
        await canned.wait_until(lambda: len(canned.requests) == 1)
        await until(lambda: limiter_of(client).waiting == 2)
        await client.aclose()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, ConfigurationError)
            assert "closed" in str(error)
        with pytest.raises(ConfigurationError, match="closed"):
            await ask(client, streaming)
        assert_empty(limiter_of(client))


def test_several_loops_share_one_limit() -> None:
    """Calls of loops in several threads are limited together, and all of them come to their turn."""
    limiter = Limiter(max_concurrency=2)
    lock, running, most, done = threading.Lock(), 0, 0, 0

    async def one() -> None:
        nonlocal running, most, done
        permit = limiter.enter(1)
        if permit.started is None:
            await limiter.wait(permit)
        with lock:
            running += 1
            most = max(most, running)
        await asyncio.sleep(0)
        with lock:
            running -= 1
            done += 1
        limiter.answered(permit)
        limiter.leave(permit)

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(200)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (done, most) == (800, 2)
    assert_empty(limiter)


def test_loop_that_ended_keeps_nothing() -> None:
    """A loop that is gone, its waiters with it, holds up nobody in another one."""
    limiter = Limiter(max_concurrency=1)

    async def leave_waiting() -> None:
        limiter.enter(1)  # never left: as if the process had forgotten it

        async def wait() -> None:
            await limiter.wait(limiter.enter(1))

        task = asyncio.get_running_loop().create_task(wait())
        await until(lambda: limiter.waiting == 1)
        task.cancel()

    asyncio.run(leave_waiting())
    assert limiter.waiting == 0
    for permit in list(limiter._pacer._running):
        limiter.leave(permit)
        limiter.leave(permit)

    async def again() -> None:
        assert limiter.enter(1).started is not None

    asyncio.run(again())
    assert limiter.in_flight == 1


async def test_waiting_costs_one_timer() -> None:
    """Ten thousand waiters cost one timer, and each start a bounded amount of work."""
    loop = asyncio.get_running_loop()
    limiter = Limiter(max_concurrency=10)
    permits = [limiter.enter(1) for _ in range(10_000)]
    work = 0
    real = limiter._work

    def counted() -> None:
        nonlocal work
        work += 1
        real()

    limiter._work = counted  # type: ignore[method-assign]

    async def through(index: int) -> None:
        permit = permits[index]
        if permit.started is None:
            await limiter.wait(permit)
        limiter.answered(permit)
        limiter.leave(permit)

    timers = len(loop._scheduled)  # type: ignore[attr-defined]
    tasks = [loop.create_task(through(index)) for index in range(10, 10_000)]
    await asyncio.sleep(0)
    assert limiter.waiting == 9_990
    assert len(loop._scheduled) <= timers + 1  # type: ignore[attr-defined]
    for permit in permits[:10]:
        limiter.answered(permit)
        limiter.leave(permit)
    await asyncio.gather(*tasks)
    assert work <= 4 * 10_000
    assert_empty(limiter)


async def test_limits_are_kept_in_time() -> None:
    """A rate spreads the starts; what is late is not lost."""
    limiter = Limiter(requests_per_minute=6000)
    times = []
    for _ in range(120):
        permit = limiter.enter(1)
        if permit.started is None:
            await limiter.wait(permit)
        limiter.answered(permit)
        limiter.leave(permit)
        times.append(permit.started or 0.0)
    # A burst of 61, and the other 59 at 99 in a second.
    assert 0.5 < times[-1] - times[0] < 3


def test_limiter_is_nearly_free() -> None:
    """Passing the limiter with nobody waiting costs a few microseconds."""
    limiter = Limiter()

    def turn() -> None:
        permit = limiter.enter(1)
        limiter.answered(permit)
        limiter.leave(permit)

    seconds = min(timeit.repeat(turn, number=2000, repeat=5)) / 2000
    assert seconds < 50e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_a_fork_starts_afresh() -> None:
    """In the child no slot is taken, though in the parent all are, and its lock is free."""
    limiter = Limiter(max_concurrency=1)
    permit = limiter.enter(1)
    with limiter._lock:
        child = os.fork()
        if child == 0:
            fresh = limiter.enter(1)
            limiter.leave(permit)
            good = fresh.started is not None and limiter.in_flight == 1
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert limiter.in_flight == 1


async def test_local_server_has_a_true_bucket() -> None:
    """The rate of the local server may change, and without headers it tells nothing."""
    async with (
        LocalServer(
            light=True, delay=0, requests_per_minute=60, burst=1, rate_limit_headers=False
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


def test_limits_refuse_what_cannot_work() -> None:
    """Limits that let nothing through are refused."""
    cases: list[dict[str, Any]] = [
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"requests_per_minute": 0},
        {"images_per_minute": -1},
    ]
    for wrong in cases:
        with pytest.raises(ConfigurationError):
            Limits(**wrong)
