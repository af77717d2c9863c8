"""The pace learned from refusals and headers, with a simulated clock."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rate_simulation import ADMITTED, PATTERNS, Setting, refused_limit, simulate
from elkimg_async.ratelimit.controller import MAX_PAUSE, MIN_RATE, Controller, HeaderLimits
from elkimg_async.sansio.responses import RateLimit


def check(setting: Setting) -> None:
    """Check that a setting reaches the admitted rate with few refusals."""
    result = simulate(setting)
    assert result.admitted >= ADMITTED
    assert result.refused <= refused_limit(setting.rate)


@pytest.mark.parametrize("latency", [0.1, 10.0])
@pytest.mark.parametrize("burst", [2, 5, 20, 50])
@pytest.mark.parametrize("rate", [20.0, 50.0, 100.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rate_is_found_from_refusals(rate: float, burst: int, latency: float, pattern: str) -> None:
    """The rate of a bucket is reached and followed without any headers."""
    check(Setting(rate=rate, burst=burst, latency=latency, refusal=0.02, pattern=pattern))


@pytest.mark.parametrize("rate", [10.0, 20.0, 30.0])
def test_rate_is_found_for_a_bucket_of_one(rate: float) -> None:
    """A server that admits no burst at all is paced evenly."""
    check(Setting(rate=rate, burst=1, refusal=0.02))


@pytest.mark.parametrize("headers", ["true", "contradictory"])
@pytest.mark.parametrize(("rate", "burst"), [(10.0, 10), (20.0, 20), (30.0, 8), (50.0, 50)])
@pytest.mark.parametrize("latency", [0.1, 1.0])
def test_headers_do_not_harm(rate: float, burst: int, latency: float, headers: str) -> None:
    """Headers, even with the limit of another period, leave the pace right."""
    check(Setting(rate=rate, burst=burst, latency=latency, headers=headers, retry_after="exact"))


def test_remaining_zero_waits_for_reset() -> None:
    """After the last remaining request nothing starts before the reset, within bounds."""
    for reset, held in [(30.0, 30.0), (1e5, MAX_PAUSE), (1.7e9, 0.0), (math.inf, 0.0)]:
        headers = HeaderLimits()
        limit = RateLimit(remaining_requests=2, reset_requests=reset)
        headers.record(1, 0.0, limit, refused=False)
        assert headers.ready_at(1.0, 2) == 1.0
        assert headers.ready_at(1.0, 3) == (held or 1.0)


def test_headers_are_ignored_once_contradicted() -> None:
    """Headers count no more after a refusal with requests remaining, or an admission with none."""
    empty = RateLimit(remaining_requests=0, reset_requests=60.0)
    refused, admitted = HeaderLimits(), HeaderLimits()
    for headers in (refused, admitted):
        headers.record(1, 0.0, empty, refused=False)
        assert headers.ready_at(1.0, 1) == 60.0
    refused.record(2, 0.1, RateLimit(remaining_requests=5, reset_requests=60.0), refused=True)
    admitted.record(2, 0.5, empty, refused=False)
    for headers in (refused, admitted):
        headers.record(3, 1.0, empty, refused=False)
        assert headers.ready_at(1.0, 3) == 1.0


def paced(count: int, now: float = 0.0) -> tuple[Controller, float]:
    """Return a controller after so many starts, with a request in flight, and the time."""
    controller = Controller()
    for _ in range(count):
        now = max(now, controller.ready_at(now, 1))
        controller.started(now)
    return controller, now


def test_slow_start_accelerates() -> None:
    """The pace grows until the first refusal, and faster with successes."""
    controller, now = paced(300)
    assert controller.rate == math.inf
    assert 1.5 < now < 4.0
    quick, _ = paced(0)
    for _ in range(300):
        quick.succeeded()
    assert quick.ready_at(0.0, 0) == 0.0
    for _ in range(100):
        now = max(0.0, quick.ready_at(0.0, 1))
        quick.started(now)
    assert now < 0.5


def test_burst_of_refusals_cuts_once() -> None:
    """Refusals of requests that started before the cut do not cut again."""
    (one, _), (ten, _) = paced(20), paced(20)
    one.rate_limited(11, 0.0)
    for number in range(11, 21):
        ten.rate_limited(number, 0.0)
    assert one.rate == ten.rate < 25


def test_idle_time_does_not_raise_the_pace() -> None:
    """Slow requests, or none for an hour, leave the pace as it is."""
    controller, now = paced(50)
    controller.rate_limited(50, 0.0)
    rate = controller.rate
    for _ in range(100):
        now += 60.0
        controller.started(now)
    assert controller.rate == rate


def test_outage_keeps_a_minimum_rate() -> None:
    """While everything is refused the pace falls to its minimum, and recovers afterwards."""
    controller, now = paced(50)
    for number in range(50, 80):
        controller.rate_limited(number, 0.0)
        now = controller.ready_at(now, 1)
        controller.started(now)
    assert controller.rate == pytest.approx(MIN_RATE)
    began = now
    while controller.rate < 5:
        now = controller.ready_at(now, 1)
        controller.started(now)
    assert now - began < 180


@settings(max_examples=50, deadline=None)
@given(
    st.floats(2, 200), st.integers(1, 50), st.floats(0.05, 10),
    st.sampled_from(["none", "true", "contradictory"]), st.sampled_from(["none", "exact", "whole"]),
)  # fmt: skip
def test_pace_never_collapses(
    rate: float, burst: int, latency: float, headers: str, retry_after: str
) -> None:
    """Whatever the server, most of its rate is used and few requests are refused."""
    result = simulate(
        Setting(
            rate=rate, burst=burst, latency=latency, headers=headers, retry_after=retry_after,
            seconds=60.0,
        )
    )  # fmt: skip
    assert result.admitted > 0.6
    assert result.refused < 0.2


def test_settings_of_simulation_are_reproducible() -> None:
    """The same setting gives the same result."""
    setting = Setting(rate=20.0, pattern="double")
    assert simulate(setting) == simulate(msgspec.structs.replace(setting))
