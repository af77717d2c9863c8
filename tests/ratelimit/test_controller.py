"""The pace learned from refusals and headers, with a simulated clock."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rate_simulation import ADMITTED, PATTERNS, Setting, refused_limit, simulate
from elkimg_async.ratelimit.controller import (
    INITIAL_WINDOW,
    MAX_PAUSE,
    MIN_RATE,
    Controller,
    HeaderLimits,
)
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


@pytest.mark.parametrize("rate", [10.0, 20.0, 30.0, 50.0])
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
        headers.record(1, 0.0, limit, rejected=False)
        assert headers.ready_at(2) == -math.inf
        assert headers.ready_at(3) == (held or -math.inf)


def test_headers_are_ignored_once_contradicted() -> None:
    """Headers count no more after a refusal with requests remaining, or an admission with none."""
    empty = RateLimit(remaining_requests=0, reset_requests=60.0)
    refused, admitted = HeaderLimits(), HeaderLimits()
    for headers in (refused, admitted):
        headers.record(1, 0.0, empty, rejected=False)
        assert headers.ready_at(1) == 60.0
    refused.record(2, 0.1, RateLimit(remaining_requests=5, reset_requests=60.0), rejected=True)
    admitted.record(2, 0.5, empty, rejected=False)
    for headers in (refused, admitted):
        headers.record(3, 1.0, empty, rejected=False)
        assert headers.ready_at(3) == -math.inf


def paced(count: int, controller: Controller, now: float = 0.0) -> float:
    """Start so many requests as soon as the pace allows; return the time."""
    for _ in range(count):
        now = max(now, controller.ready_at(INITIAL_WINDOW))
        controller.started(now, -math.inf)
    return now


def test_slow_start_never_delays_a_few_requests() -> None:
    """Until the first 429, requests start at once while few are in flight."""
    controller = Controller()
    paced(50, controller)
    assert controller.ready_at(INITIAL_WINDOW - 1) == -math.inf
    assert controller.ready_at(INITIAL_WINDOW) > 0.0
    controller.rate_limited(50, 1.0, 0.0)
    assert controller.ready_at(0) > 0.0


def test_slow_start_accelerates() -> None:
    """The pace grows until the first refusal, and faster with successes."""
    slow, quick = Controller(), Controller()
    now = paced(300, slow)
    assert slow.rate == math.inf
    assert 1.5 < now < 4.0
    quick.started(0.0, 0.0)
    for _ in range(50):
        quick.succeeded(0.0, 0.05)
    assert paced(300, quick) < 1.0


def test_burst_of_refusals_cuts_once() -> None:
    """Refusals of requests that started before the cut do not cut again."""
    one, ten = Controller(), Controller()
    now = paced(20, one)
    paced(20, ten)
    one.rate_limited(11, now, 0.0)
    for number in range(11, 21):
        ten.rate_limited(number, now, 0.0)
    assert one.rate == ten.rate < 25


def test_idle_time_does_not_raise_the_pace() -> None:
    """Slow requests, or none for an hour, leave the pace as it is."""
    controller = Controller()
    now = paced(50, controller)
    controller.rate_limited(50, now, 0.0)
    rate = controller.rate
    for _ in range(100):
        now += 60.0
        controller.started(now, -math.inf)
    assert controller.rate == rate


def test_outage_keeps_the_plateau() -> None:
    """While everything is refused the pace falls, and it soon recovers afterwards."""
    controller = Controller()
    now = paced(50, controller)
    controller.rate_limited(50, now, 0.0)
    before = 2.0 * controller.rate  # the plateau
    for _ in range(20):
        now = paced(1, controller, now)
        controller.rate_limited(controller.starts, now, 0.0)
    assert MIN_RATE <= controller.rate < 0.3 * before
    began = now
    while controller.rate < 0.95 * before:
        now = paced(1, controller, now)
    assert now - began < 35


@pytest.mark.parametrize("setting", [
    Setting(rate=20.0, burst=10, pattern="double", latency=0.15, refusal=0.003),
    Setting(rate=50.0, burst=5, pattern="halve", latency=0.15, refusal=0.003),
    Setting(rate=20.0, burst=20, retry_after="whole", latency=0.15, refusal=0.003),
    Setting(rate=20.0, window=1.0, latency=0.15, refusal=0.003),
    Setting(rate=5.0, burst=5, pattern="double and halve", latency=0.15, refusal=0.003),
], ids=str)  # fmt: skip
def test_rate_is_found_for_each_kind_of_server(setting: Setting) -> None:
    """Changed rates, pauses of whole seconds, fixed windows and low rates are paced right."""
    check(setting)


@settings(max_examples=50, derandomize=True)
@given(
    st.floats(2, 200), st.integers(1, 50), st.floats(0.05, 10),
    st.sampled_from(["none", "true", "contradictory"]), st.sampled_from(["none", "exact", "whole"]),
)  # fmt: skip
def test_pace_never_collapses(
    rate: float, burst: int, latency: float, headers: str, retry_after: str
) -> None:
    """Most of the rate is used, and few requests are rejected, whatever the server is like."""
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
