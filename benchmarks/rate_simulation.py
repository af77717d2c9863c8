"""Simulation of the rate controller against servers with a rate limit, with a clock of its own."""

import heapq
import itertools
import math
import multiprocessing
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from elkimg_async.ratelimit.controller import MAX_PAUSE, Controller, HeaderLimits
from elkimg_async.sansio.responses import RateLimit

ADMITTED = 0.95  # share of the admitted rate to be reached
SETTLING = 10.0  # seconds after the start and after each change that are not counted for it
ROUNDING = 1e-9
PATTERNS: dict[str, tuple[float, ...]] = {
    "steady": (1.0,),
    "double": (1.0, 2.0),
    "halve": (1.0, 0.5),
    "double and halve": (1.0, 2.0, 1.0),
}
Verdict = tuple[bool, int, float, float]
"""Whether it is admitted, what remains, seconds until the reset and until the next is admitted."""


def refused_limit(rate: float) -> float:
    """Return the share of requests that may be refused."""
    return 0.03 if rate < 10 else 0.02


class Bucket:
    """A server that admits `rate` requests per second, with `burst` in store at most."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self._burst, self._level, self._at = rate, burst, burst, 0.0

    def set_rate(self, rate: float, now: float) -> None:
        """Change the rate."""
        self._level = min(self._burst, self._level + (now - self._at) * self.rate)
        self._at, self.rate = now, rate

    def request(self, now: float) -> Verdict:
        """Handle one request."""
        self.set_rate(self.rate, now)
        admitted = self._level >= 1.0 - ROUNDING
        self._level -= admitted
        reset = (self._burst - self._level) / self.rate
        wait = (1.0 - self._level) / self.rate
        return admitted, int(self._level + ROUNDING), reset, wait


class Window:
    """A server that admits `rate` requests per second in fixed windows of `length` seconds."""

    def __init__(self, rate: float, length: float) -> None:
        self.rate, self._length, self._used, self._end = rate, length, 0, length

    def set_rate(self, rate: float, now: float) -> None:
        """Change the rate."""
        self.rate = rate

    def request(self, now: float) -> Verdict:
        """Handle one request."""
        while now >= self._end:
            self._end, self._used = self._end + self._length, 0
        limit = max(1, round(self.rate * self._length))
        admitted = self._used < limit
        self._used += admitted
        left = self._end - now
        return admitted, limit - self._used, left, left


class Setting(msgspec.Struct, frozen=True):
    """One server and client: `window` is the length of fixed windows, 0 for a bucket of `burst`."""

    rate: float
    burst: float = 10.0
    window: float = 0.0
    latency: float = 1.0
    refusal: float = 0.05
    pattern: str = "steady"
    headers: str = "none"
    """`none`, `true`, or `contradictory`: the limit of a minute."""
    retry_after: str = "none"
    """`none`, `exact`, or `whole` seconds."""
    seconds: float = 120.0
    lateness: float = 0.001
    """The seconds by which timers are late at most."""
    jitter: float = 0.0
    """The mean of the further delay that one in twenty starts and arrivals has, as under load."""
    seed: int = 1


class Result(msgspec.Struct, frozen=True):
    """The share of the admitted rate reached after settling, and the share refused in all."""

    admitted: float
    worst_part: float
    refused: float


class Simulation:
    """A client with a full queue, and one server; timers are late."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._random = random.Random(setting.seed)
        self._controller, self._headers = Controller(), HeaderLimits()
        self._server: Bucket | Window = Bucket(setting.rate, setting.burst)
        if setting.window:
            self._server = Window(setting.rate, setting.window)
        self._events: list[tuple[float, int, str, int, Any]] = []
        self._order = itertools.count()
        self._started: dict[int, float] = {}
        self._paused_until = -math.inf
        self.log: list[tuple[float, bool]] = []

    def run(self) -> Result:
        """Run to the end."""
        setting, now = self._setting, 0.0
        factors = PATTERNS[setting.pattern]
        part = setting.seconds / len(factors)
        for index, factor in enumerate(factors):
            self._add(part * index, "change", 0, setting.rate * factor)
        while now < setting.seconds:
            controller = self._controller
            ready = max(
                held := max(self._headers.ready_at(controller.starts), self._paused_until),
                controller.ready_at(len(self._started)),
            )
            if self._events and self._events[0][0] < max(ready, now):
                when, _, kind, number, value = heapq.heappop(self._events)
                now = max(now, when)
                getattr(self, "_" + kind)(now, number, value)
            else:
                now = now if ready <= now else ready + self._delay(setting.lateness)
                number = controller.started(now, held)
                self._started[number] = now
                delay = min(setting.latency, setting.refusal) / 2 + self._delay(0.0002)
                self._add(now + delay, "arrive", number, None)
        return self._result(part)

    def _delay(self, most: float) -> float:
        delay, jitter = self._random.random() * most, self._setting.jitter
        if jitter and self._random.random() < 0.05:
            delay += self._random.expovariate(1.0 / jitter)
        return delay

    def _add(self, when: float, kind: str, number: int, value: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, number, value))

    def _change(self, now: float, _: int, rate: float) -> None:
        self._server.set_rate(rate, now)

    def _arrive(self, now: float, number: int, _: None) -> None:
        setting, verdict = self._setting, self._server.request(now)
        self.log.append((now, verdict[0]))
        delay = setting.latency if verdict[0] else min(setting.latency, setting.refusal)
        self._add(self._started[number] + delay, "respond", number, verdict)

    def _respond(self, now: float, number: int, verdict: Verdict) -> None:
        admitted, remaining, reset, wait = verdict
        setting, started = self._setting, self._started.pop(number)
        if setting.headers != "none":
            rate_limit = RateLimit(
                limit_requests=int(60 * setting.rate),
                remaining_requests=remaining,
                reset_requests=round(reset, 3),
            )
            self._headers.record(number, started, rate_limit, rejected=not admitted)
        if admitted:
            self._controller.succeeded(now, now - started)
            return
        pause = {"none": 0.0, "exact": wait, "whole": float(math.ceil(wait))}[setting.retry_after]
        pause = min(pause, MAX_PAUSE)
        if pause:
            self._paused_until = max(self._paused_until, now + pause)
        self._controller.rate_limited(number, now, pause)

    def _result(self, part: float) -> Result:
        setting, shares, allowed, reached = self._setting, [], 0.0, 0
        for index, factor in enumerate(PATTERNS[setting.pattern]):
            begin, end = part * index + SETTLING, part * (index + 1)
            admitted = sum(ok for when, ok in self.log if begin <= when < end)
            allowed += setting.rate * factor * (end - begin)
            reached += admitted
            shares.append(admitted / (setting.rate * factor * (end - begin)))
        refused = sum(not ok for _, ok in self.log) / max(1, len(self.log))
        return Result(reached / allowed, min(shares), refused)


def simulate(setting: Setting) -> Result:
    """Run one setting."""
    return Simulation(setting).run()


def wide_grid() -> Iterator[Setting]:
    """Return thousands of settings."""
    rates = 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0
    for rate, pattern, latency in itertools.product(rates, PATTERNS, (0.1, 1.0, 10.0)):
        common: dict[str, Any] = {"rate": rate, "pattern": pattern, "latency": latency}
        for headers, retry_after in [
            ("none", "none"), ("none", "exact"), ("none", "whole"),
            ("true", "none"), ("true", "exact"), ("contradictory", "exact"),
        ]:  # fmt: skip
            told: dict[str, Any] = {"headers": headers, "retry_after": retry_after}
            for burst, refusal in itertools.product((1, 2, 3, 5, 10, 20, 50), (0.01, 0.1)):
                yield Setting(**common, **told, burst=burst, refusal=refusal)
            if (headers, retry_after) != ("none", "none"):
                yield Setting(**common, **told, window=10.0)
            if (headers, retry_after) != ("none", "whole"):
                yield Setting(**common, **told, window=1.0)


def report(settings: Iterable[Setting], *, worst: int = 25) -> None:
    """Print how many settings reach the aim, by each of their fields, and the worst of them."""
    settings = list(settings)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        results = list(zip(settings, pool.map(simulate, settings, chunksize=16), strict=True))
    groups: dict[tuple[str, Any], list[tuple[Setting, Result]]] = defaultdict(list)
    for setting, result in results:
        groups["all", ""].append((setting, result))
        for name in (
            "rate",
            "burst",
            "window",
            "latency",
            "refusal",
            "pattern",
            "headers",
            "retry_after",
        ):
            groups[name, getattr(setting, name)].append((setting, result))
    for (name, value), group in sorted(groups.items(), key=str):
        slow = [result.admitted for _, result in group if result.admitted < ADMITTED]
        many = [
            setting for setting, result in group if result.refused > refused_limit(setting.rate)
        ]
        mean = sum(result.admitted for _, result in group) / len(group)
        sys.stdout.write(
            f"{name:12} {value!s:17} {len(group):5} settings: "
            f"{1 - len(slow) / len(group):6.1%} admitted enough "
            f"(mean {mean:.1%}, worst {min([mean, *slow]):.1%}), "
            f"{1 - len(many) / len(group):6.1%} refused few enough "
            f"(worst {max(result.refused for _, result in group):.1%})\n"
        )
    results.sort(key=lambda pair: pair[1].admitted - 4 * pair[1].refused)
    for setting, result in results[:worst]:
        sys.stdout.write(f"{result.admitted:.3f} {result.refused:.4f} {setting}\n")
