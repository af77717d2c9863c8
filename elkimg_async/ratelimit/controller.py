"""Pace of requests to a server whose rate limit is unknown: CUBIC on the delivered rate.

The growth function is that of CUBIC (RFC 9438, section 4.2), applied to requests as botocore's
adaptive retry mode does. Slow start lasts until the first 429: a few requests may always be in
flight, and the pace of further ones doubles with each round trip. A 429 sets the plateau and cuts
the pace, which returns along the cubic and then probes beyond, ever faster.

A token bucket that admits bursts is empty at each 429, so the rate delivered between two of them is
its rate. A bucket of one is never empty before: its rate is the pace at the 429. The plateau lies
between the two. Requests that started before a cut do not cut again, and only time in which the
limiter held back a request counts, so that idling raises nothing (section 5.8).
"""

import math

from elkimg_async.sansio.responses import RateLimit

MAX_PAUSE = 120.0  # seconds: no header pauses all calls for longer
INITIAL_WINDOW = 4  # requests in flight that slow start never delays, as in RFC 3390
START_RATE, MIN_RATE = 25.0, 0.1  # starts per second of further requests: at first, and at least
MIN_ROUND_TRIP = 0.25  # seconds in which slow start doubles the pace, at least
BETA, DEEP_BETA = 0.93, 0.5  # factor of a cut, and of one while the rate is hardly known
STRICT = 0.7  # weight of the pace against the delivered rate
MIN_SAMPLE = 15  # requests between two 429s that make a delivered rate reliable
FIRST_RETURN = 10  # requests in which the pace returns after a cut, at least
# Seconds, times the root of the plateau, of the return to it and of doubling beyond it: faster
# servers are probed sooner, but less often per request.
RETURN, DOUBLE = 40.0, 26.0
MIN_SECONDS, MAX_SECONDS = 4.0, 15.0  # bounds of these times, while the plateau is known
LATENESS = 0.0005  # seconds by which a start may be late without losing its slot


class Controller:
    """Pace learned from 429 responses."""

    def __init__(self) -> None:
        self._plateau = math.inf
        self._low = START_RATE  # the pace of slow start, and after a cut
        self._return, self._double = 1.0, MIN_SECONDS
        self._elapsed = 0.0  # seconds since the cut in which requests were held back
        self._delivered = self._interval = 0.0  # requests and seconds, weighted to recent ones
        self._due = self._last = -math.inf
        self._cut_at = self.starts = 0

    @property
    def rate(self) -> float:
        """The current pace in starts per second; `math.inf` during slow start."""
        return math.inf if self._plateau == math.inf else self._pace()

    def ready_at(self, in_flight: int) -> float:
        """Return the time from which the next request may start."""
        free = self._plateau == math.inf and in_flight < INITIAL_WINDOW
        return -math.inf if free else self._due

    def started(self, now: float, ready: float) -> int:
        """Record a start; return its number. `ready` is the time from which it was allowed."""
        gap = 1.0 / self._pace()
        if now - max(ready, self._due) < gap and self.starts:
            passed = max(0.0, now - self._last)
            kept = math.exp(-passed / self._double)
            self._delivered = self._delivered * kept + 1.0
            self._interval = self._interval * kept + passed
            self._elapsed += min(passed, 2.0 * gap)
            if self._plateau == math.inf and ready <= self._due:
                self._low += 1.0
        self._last = now
        self._due = max(self._due + gap, now + gap - LATENESS)
        self.starts += 1
        return self.starts

    def succeeded(self, now: float, latency: float) -> None:
        """Record a success: in slow start, one more request per round trip, if that is needed."""
        if self._plateau == math.inf and now < self._due:
            self._low += 1.0 / max(latency, MIN_ROUND_TRIP)

    def rate_limited(self, number: int, now: float, pause: float) -> None:
        """Cut the pace after a 429, once for all starts so far; `pause` is its Retry-After."""
        if number <= self._cut_at:
            return
        pace, beta, seconds, slow_start = self._pace(), DEEP_BETA, 0.0, self._plateau == math.inf
        delivered = max(0.0, self._delivered - 1.0)  # without the rejected request
        self._interval = max(self._interval + pause, 0.001)
        measured = min(pace, delivered / self._interval)
        if delivered < 0.5:  # an outage, or a used-up window: nothing is known of the rate
            self._plateau = pace if slow_start else self._plateau
            seconds = min(2.0 * self._return, 2.0 * MAX_SECONDS)
        elif slow_start:
            self._plateau = measured
        elif delivered >= MIN_SAMPLE:
            self._plateau, beta = measured + STRICT * (pace - measured), BETA
            seconds = min(_seconds(RETURN, self._plateau), 5.0 * self._elapsed)
        else:
            highest = min(pace, self._plateau, (delivered + 1.0) / self._interval)
            self._plateau = max(highest, pace / 2.0)
            beta = DEEP_BETA if number - self._cut_at <= 3 else BETA
        if slow_start or delivered >= MIN_SAMPLE:  # the next sample starts with an empty bucket
            delivered = self._interval = 0.0
        self._delivered, self._plateau = delivered, max(self._plateau, MIN_RATE)
        self._low = max(beta * min(self._plateau, pace), MIN_RATE)
        self._double = _seconds(DOUBLE, self._plateau)
        self._return = max(seconds, min(FIRST_RETURN / self._low, MAX_SECONDS))
        self._elapsed, self._cut_at = 0.0, self.starts
        self._due, self._last = self._last + 1.0 / self._pace(), max(self._last, now + pause)

    def _pace(self) -> float:
        if self._plateau == math.inf:
            return self._low
        if (time := self._elapsed - self._return) < 0.0:
            return self._plateau + (self._plateau - self._low) * (time / self._return) ** 3
        return self._plateau + self._plateau * (time / self._double) ** 3


def _seconds(scale: float, plateau: float) -> float:
    return min(max(scale / math.sqrt(plateau), MIN_SECONDS), MAX_SECONDS)


class HeaderLimits:
    """The latest `x-ratelimit-*` headers: once nothing remains, the next start waits for `reset`.

    They are ignored for good once contradicted: by a 429 while something remains, or by the
    admission of a request that started clearly after the remaining ones and before the reset.
    """

    def __init__(self) -> None:
        self._trusted = True
        self._number = self._remaining = 0
        self._started = self._until = -math.inf

    def ready_at(self, starts: int) -> float:
        """Return the time from which the next request may start."""
        held = self._trusted and starts - self._number >= self._remaining
        return self._until if held else -math.inf

    def record(self, number: int, started: float, headers: RateLimit, rejected: bool) -> None:
        """Record the headers of the response to a request."""
        later = number - self._remaining > self._number and started > self._started + 0.1
        contradicted = headers.remaining_requests if rejected else later and started < self._until
        self._trusted = self._trusted and not contradicted
        remaining, reset = headers.remaining_requests, headers.reset_requests or 0.0
        # A reset of many days is a point in time.
        if remaining is not None and 0.0 < reset < 1e6 and number >= self._number:
            self._number, self._remaining, self._started = number, remaining, started
            self._until = started + min(reset, MAX_PAUSE)
