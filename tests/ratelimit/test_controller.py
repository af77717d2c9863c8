"""Pacing: a client against servers of whose limits it learns by refusals or headers, with a clock of its own."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.ratelimit.pacing import Bucket, Pacer, Permit
from elkimg_async.sansio.responses import RateLimit

Verdict = tuple[bool, RateLimit | None, float | None]
"""Whether it was admitted, the headers, the Retry-After."""
Log = list[tuple[float, bool]]


class TokenBucket:
    """A server that admits `per_minute`, with `burst` in store at most."""

    def __init__(self, per_minute: float, burst: float, *, tells: bool = False) -> None:
        self.per_minute, self.burst, self.tells = per_minute, burst, tells
        self.left, self.at = burst, 0.0

    def change(self, per_minute: float, now: float) -> None:
        self._fill(now)
        self.per_minute = per_minute

    def ask(self, now: float) -> Verdict:
        self._fill(now)
        admitted = self.left >= 1.0 - 1e-9
        self.left -= admitted
        if not self.tells:
            return admitted, None, None
        second = self.per_minute / 60
        limit = RateLimit(
            limit_requests=int(self.burst),
            remaining_requests=int(self.left + 1e-9),
            reset_requests=round((self.burst - self.left) / second, 3),
        )
        return admitted, limit, None if admitted else (1 - self.left) / second

    def _fill(self, now: float) -> None:
        flown = (now - self.at) * self.per_minute / 60
        self.left, self.at = min(self.burst, self.left + flown), now


class FixedWindow:
    """A server that admits `per_minute` in each minute of its own clock, and tells so."""

    def __init__(self, per_minute: int, *, whole_seconds: bool = False) -> None:
        self.per_minute, self.whole = per_minute, whole_seconds
        self.used, self.ends = 0, 37.0

    def change(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute

    def ask(self, now: float) -> Verdict:
        while now >= self.ends:
            self.ends, self.used = self.ends + 60.0, 0
        admitted = self.used < self.per_minute
        self.used += admitted
        reset = self.ends - now
        limit = RateLimit(
            limit_requests=self.per_minute,
            remaining_requests=max(0, self.per_minute - self.used),
            reset_requests=math.ceil(reset) if self.whole else reset,
        )
        return admitted, limit, None if admitted else reset


def simulate(
    server: TokenBucket | FixedWindow,
    seconds: float,
    *,
    latency: float,
    changes: Sequence[tuple[float, int]] = (),
) -> Log:
    """Many callers, always some in the queue; returns when each request reached the server, and whether it was admitted."""
    pacer, log, numbers = Pacer(), Log(), itertools.count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    alarm = math.inf

    def at(when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(numbers), act))

    def arrive(permit: Permit) -> Callable[[float], None]:
        def act(now: float) -> None:
            admitted, limit, retry_after = server.ask(now)
            log.append((now, admitted))

            def answered(now: float) -> None:
                if admitted:
                    pacer.answered(permit, now, limit)
                else:
                    pacer.refused(permit, now, retry_after=retry_after, limit=limit)
                pacer.leave(permit)

            at(now + (latency if admitted else min(latency, 0.1)), answered)

        return act

    def send(permits: Sequence[Permit], now: float) -> None:
        for permit in permits:
            at(now + min(0.02, latency / 4), arrive(permit))

    def wake(now: float) -> None:
        nonlocal alarm
        if now >= alarm:
            alarm = math.inf

    for when, per_minute in changes:
        at(when, partial(server.change, per_minute))
    at(0.0, wake)
    while events:
        now, _, act = heapq.heappop(events)
        if now > seconds:
            break
        act(now)
        if alarm < math.inf and act is wake:
            continue
        while pacer.waiting < 20:
            permit = pacer.enter(1, now)
            send([permit] if permit.started is not None else [], now)
        send(pacer.admit(now), now)
        when = pacer.next_time(now)
        if when < alarm and when < math.inf:
            alarm = max(when, now + 1e-9)
            at(alarm, wake)
    return log


def figures(log: Log, begin: float, end: float, per_minute: float) -> tuple[float, float]:
    """The share of a rate that was reached, and the share of requests that was refused."""
    seen = [admitted for when, admitted in log if begin <= when < end]
    return sum(seen) / (end - begin) * 60 / per_minute, seen.count(False) / max(1, len(seen))


def assert_follows(log: Log, begin: float, end: float, per_minute: float) -> None:
    reached, refused = figures(log, begin, end, per_minute)
    assert reached >= 0.95
    assert refused < 0.02 or refused * per_minute < 1.5  # a single one is always allowed


@pytest.mark.parametrize("latency", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(
    ("per_minute", "burst"),
    [(300, 10), (600, 10), (600, 60), (600, 600), (1200, 5), (1200, 120), (3000, 300)],
)
def test_rate_is_found_by_refusals_alone(per_minute: int, burst: int, latency: float) -> None:
    """At least 95 % of what the server admits, with under 2 % refused, whatever its bucket and latency."""
    log = simulate(TokenBucket(per_minute, burst), 200, latency=latency)
    first = next(when for when, admitted in log if not admitted)
    assert_follows(log, first + (20 if per_minute >= 600 else 60), 200, per_minute)


@pytest.mark.slow
@pytest.mark.parametrize("latency", [0.01, 1.0])
@pytest.mark.parametrize("burst", [60, 600, 6000])
def test_fast_rate_is_found_by_refusals_alone(burst: int, latency: float) -> None:
    """A hundred requests a second are reached as well, and four times as many followed."""
    server = TokenBucket(6000, burst)
    log = simulate(server, 240, latency=latency, changes=[(180.0, 24_000)])
    assert_follows(log, 130, 180, 6000)
    assert_follows(log, 190, 240, 24_000)


@pytest.mark.parametrize("latency", [0.01, 1.0, 30.0])
def test_slow_rate_is_found_by_refusals_alone(latency: float) -> None:
    """One request a second needs a hundred of them to be known; then it is held."""
    for burst in (5, 10, 60):
        assert_follows(simulate(TokenBucket(60, burst), 600, latency=latency), 120, 600, 60)


@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0])
@pytest.mark.parametrize("latency", [0.01, 1.0])
@pytest.mark.parametrize(("per_minute", "burst"), [(1200, 120), (3000, 300)])
def test_change_of_rate_is_followed(
    per_minute: int, burst: int, latency: float, factor: float
) -> None:
    """Ten seconds after a change the new rate is reached."""
    new = int(per_minute * factor)
    log = simulate(TokenBucket(per_minute, burst), 140, latency=latency, changes=[(60.0, new)])
    reached, refused = figures(log, 70, 140, new)
    assert reached >= 0.95
    assert refused < 0.03


@pytest.mark.parametrize("latency", [0.01, 1.0])
@pytest.mark.parametrize(
    ("per_minute", "burst"),
    [(60, 5), (60, 6), (60, 60), (100, 10), (333, 7), (600, 60), (600, 600)],
)
def test_headers_of_a_bucket_are_followed_from_the_start(
    per_minute: int, burst: int, latency: float
) -> None:
    """Where headers tell, nothing is lost and next to nothing refused, before a change or after."""
    changes = [(60.0, 2 * per_minute), (120.0, per_minute // 2)]
    server = TokenBucket(per_minute, burst, tells=True)
    log = simulate(server, 180, latency=latency, changes=changes)
    assert_follows(log, 2, 60, per_minute)
    assert_follows(log, 60, 120, 2 * per_minute)
    assert_follows(log, 120, 180, per_minute // 2)


def test_headers_that_leave_the_rate_open_hold_nothing_up() -> None:
    """Whole seconds say nothing of a bucket that is full in less; then refusals teach the rate."""

    class Rounded(TokenBucket):
        def ask(self, now: float) -> Verdict:
            admitted, limit, _ = super().ask(now)
            assert limit is not None
            assert limit.reset_requests is not None
            reset = float(math.ceil(limit.reset_requests))
            return admitted, msgspec.structs.replace(limit, reset_requests=reset), None

    for burst in (5, 10):
        log = simulate(Rounded(1200, burst, tells=True), 120, latency=1.0)
        assert_follows(log, 20, 120, 1200)


@pytest.mark.parametrize("whole_seconds", [False, True])
@pytest.mark.parametrize("latency", [0.01, 1.0])
@pytest.mark.parametrize("per_minute", [60, 600])
def test_headers_of_a_window_are_followed(
    per_minute: int, latency: float, whole_seconds: bool
) -> None:
    """What a window has left is spread over the rest of it."""
    server = FixedWindow(per_minute, whole_seconds=whole_seconds)
    log = simulate(server, 37 + 240, latency=latency, changes=[(157.0, 2 * per_minute)])
    assert_follows(log, 37, 157, per_minute)
    assert_follows(log, 157, 277, 2 * per_minute)
    middle = sum(admitted for when, admitted in log if 97 <= when < 127)
    assert 0.3 * per_minute < middle < 0.7 * per_minute


@pytest.mark.parametrize("latency", [0.01, 1.0])
def test_outage_is_over_soon_after_its_end(latency: float) -> None:
    """While everything is refused few are sent, and soon after that the client is as fast as before."""

    class Outage(TokenBucket):
        def ask(self, now: float) -> Verdict:
            return (False, None, None) if 20.0 <= now < 50.0 else super().ask(now)

    log = simulate(Outage(1200, 20), 80.0, latency=latency)
    assert sum(30.0 <= when < 50.0 for when, _ in log) <= 25
    assert figures(log, 65.0, 80.0, 1200)[0] > 0.9


@pytest.mark.parametrize(("left", "reset"), [(1000, 86_400.0), (10, 1.7e9), (10, 5e8)])
def test_header_of_a_long_window_holds_nothing_up(left: int, reset: float) -> None:
    """What is allowed for a day may be used now, and a time that is none does not stop the client."""
    pacer, now, started = Pacer(), 0.0, 0
    limit = RateLimit(limit_requests=1000, remaining_requests=left, reset_requests=reset)
    while now < 600.0 and started < 60:
        permit = pacer.enter(1, now)
        while permit.started is None:
            now = pacer.next_time(now)
            assert now < math.inf
            pacer.admit(now)
        started += 1
        limit = msgspec.structs.replace(limit, remaining_requests=max(0, left - started))
        pacer.answered(permit, now, limit)
        pacer.leave(permit)
    assert now < 600.0 if left > 60 else started >= 5


def test_gentle_start() -> None:
    """Some may start at once, then some each second, and two more for each good answer."""
    pacer = Pacer()
    started = [pacer.enter(1, 0.0) for _ in range(100)]
    assert sum(permit.started is not None for permit in started) == 32
    assert len(pacer.admit(1.0)) == 20
    pacer.answered(started[0], 1.0)
    assert len(pacer.admit(1.0)) == 2


def test_one_burst_of_refusals_is_one_cut_and_one_pause() -> None:
    """Ten refusals of requests that had started before the first was known cut once."""
    one, ten = Pacer(), Pacer()
    for pacer, count in ((one, 1), (ten, 10)):
        permits = [pacer.enter(1, 0.0) for _ in range(10)]
        for permit in permits[:count]:
            pacer.refused(permit, 0.1, retry_after=2.0)
        for permit in permits:
            pacer.leave(permit)
        pacer.enter(1, 0.1)
    assert one.rate(0.1) == ten.rate(0.1) < 20
    assert one.next_time(0.1) == ten.next_time(0.1) >= 2.1


def test_overload_halves_what_is_in_flight() -> None:
    """After a 503 half as many may be in flight as were."""
    pacer = Pacer()
    permits = [pacer.enter(1, 0.0) for _ in range(20)]
    pacer.refused(permits[0], 1.0, overload=True)
    for permit in permits[:10]:
        pacer.leave(permit)
    waiting = pacer.enter(1, 2.0)
    assert waiting.started is None
    assert pacer.next_time(100.0) == math.inf
    pacer.leave(permits[10])
    assert pacer.admit(100.0) == [waiting]


def test_retry_after_beyond_reason_pauses_nobody() -> None:
    """A day is no pause but a quota."""
    pacer = Pacer()
    pacer.refused(pacer.enter(1, 0.0), 0.0, retry_after=86_400.0)
    pacer.enter(1, 0.0)
    assert pacer.next_time(0.0) < 1.0


def test_heavy_request_leaves_a_debt() -> None:
    """A request of ten images goes when the bucket is full, and the next waits for all of it."""
    bucket = Bucket(60)
    assert bucket.ready_at(10, 0.0) == 0.0
    bucket.take(10, 0.0)
    assert bucket.ready_at(1, 0.0) == pytest.approx((1 + 10 - 1.6) / 0.99)


weights = st.lists(st.integers(1, 10), min_size=1, max_size=60)
limits = st.fixed_dictionaries(
    {
        "max_concurrency": st.none() | st.integers(1, 5),
        "requests_per_minute": st.none() | st.floats(1, 6000),
        "images_per_minute": st.none() | st.floats(1, 6000),
    }
)
headers = st.none() | st.builds(
    RateLimit,
    limit_requests=st.none() | st.integers(0, 10_000),
    remaining_requests=st.none() | st.integers(0, 10_000),
    reset_requests=st.none() | st.floats(0, 1e12) | st.just(math.inf),
)


@settings(max_examples=60, deadline=None)
@given(
    weights, limits, headers, st.sampled_from(["good", "429", "503"]), st.none() | st.floats(0, 200)
)
def test_everyone_starts_in_order_and_in_time(
    weights: list[int],
    limits: dict[str, float | None],
    header: RateLimit | None,
    kind: str,
    retry_after: float | None,
) -> None:
    """Whatever the answers say, all start, first come first served, within the limits and in bounded time."""
    pacer = Pacer(**limits)  # type: ignore[arg-type]
    most = limits["max_concurrency"] or math.inf
    now, order, running = 0.0, list[Permit](), list[Permit]()
    permits = [pacer.enter(weight, now) for weight in weights]
    running += [permit for permit in permits if permit.started is not None]
    order += running
    while len(order) < len(permits):
        assert pacer.in_flight <= most
        if running and (len(running) >= most or pacer.next_time(now) > now):
            permit = running.pop(0)
            if kind == "good":
                pacer.answered(permit, now, header)
            else:
                pacer.refused(
                    permit, now, retry_after=retry_after, limit=header, overload=kind == "503"
                )
            pacer.leave(permit)
            pacer.leave(permit)
        if not running:
            when = pacer.next_time(now)
            assert when - now <= 121 + 60 * 11 / min(
                limits["requests_per_minute"] or 6000, limits["images_per_minute"] or 6000
            )
            now = max(now + 1e-6, when)
        started = pacer.admit(now)
        running += started
        order += started
    assert order == permits


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 3000), st.integers(0, 1000))
def test_no_minute_passes_its_limit(per_minute: float, seed: int) -> None:
    """In any 60 seconds no more start than the limit and one, however the callers come."""
    chance, pacer, now, starts = random.Random(seed), Pacer(requests_per_minute=per_minute), 0.0, []
    while now < 200:
        permit = pacer.enter(1, now)
        begun = [permit] if permit.started is not None else []
        for started in [*begun, *pacer.admit(now)]:
            pacer.answered(started, now)
            pacer.leave(started)
            starts.append(now)
        now += chance.expovariate(per_minute / 30) if chance.random() < 0.99 else 20.0
    first = 0
    for index, start in enumerate(starts):
        while starts[first] < start - 60.0 + 1e-6:
            first += 1
        assert index - first + 1 <= per_minute + 1 + 1e-6


def test_waiting_costs_the_same_however_many_wait() -> None:
    """What is looked at for a start does not grow with the queue."""
    pacer = Pacer(max_concurrency=1)
    first, *rest = [pacer.enter(1, 0.0) for _ in range(20_000)]
    for permit in rest[::2]:
        pacer.leave(permit)
    assert pacer.waiting == 9_999
    pacer.leave(first)
    assert pacer.admit(0.0) == [rest[1]]
