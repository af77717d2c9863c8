"""Pace of requests to a server whose rate limit is unknown: CUBIC on the delivered rate.

The growth function is that of CUBIC (RFC 9438, section 4.2), applied to requests as botocore's
adaptive retry mode does. Slow start lasts until the first 429: a few requests may always be in
flight, and the pace of further ones doubles with each round trip. A 429 cuts the pace to the rate
delivered since the one before; it returns to a plateau along the cubic, then probes beyond, ever
faster.

A token bucket is empty at each 429, so the rate delivered between two of them, pauses included, is
its rate, unless it was full in between. A bucket of one always was: its rate is the pace at the
429. The plateau is a weighted geometric mean of the two. Requests that started before a cut do not
cut again, and only time in which the limiter held back a request counts (section 5.8).
"""

import math

from elkimg_async.sansio.responses import RateLimit

MAX_PAUSE = 120.0  # seconds: no header pauses all calls for longer
INITIAL_WINDOW = 4  # requests in flight that slow start never delays, as in RFC 3390
START_RATE, MIN_RATE = 12.0, 0.1  # starts per second of further requests: at first, and at least
MIN_ROUND_TRIP = 0.25  # seconds in which slow start doubles the pace, at least
BETA, DEEP_BETA = 0.8, 0.5  # smallest factor of a cut, and that while the rate is hardly known
PACE_WEIGHT = 0.65  # weight of the pace at a 429 in the plateau, against the delivered rate
MIN_SAMPLE, MAX_FALL = 15, 4.0  # requests for a reliable plateau; factor of a fall without them
# The return takes so many requests, so that about one in a hundred is rejected, or a multiple of
# the pause, so that pauses cost little; only a few requests while the rate is hardly known.
RETURN, RETURN_PER_PAUSE, FIRST_RETURN, MAX_RETURN = 80.0, 15.0, 10.0, 12.0  # the last in seconds
# Seconds, times the root of the plateau, in which probing doubles the pace: faster servers are
# probed sooner, but less often per request. The last is that after slow start.
DOUBLE, MIN_DOUBLE, MAX_DOUBLE, FIRST_DOUBLE = 26.0, 4.0, 12.0, 2.0
LATENESS = 0.0005  # seconds by which a start may be late without losing its slot


class Controller:
    """Pace learned from 429 responses."""

    def __init__(self) -> None:
        self._plateau = math.inf
        self._low = START_RATE  # the pace of slow start, and after a cut
        self._return, self._double = 1.0, MIN_DOUBLE
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
        pace, slow_start = self._pace(), self._plateau == math.inf
        delivered = max(0.0, self._delivered - 1.0)  # without the rejected request
        interval = max(self._interval, 0.001)
        average = min(pace, delivered / interval)
        low, seconds = DEEP_BETA * min(pace, self._plateau), 0.0
        if slow_start:
            self._plateau = average if delivered >= MIN_SAMPLE else pace
            low = DEEP_BETA * self._plateau
        elif delivered < 0.5:  # an outage, or a used-up window: nothing is learned of the rate
            seconds = min(2.0 * self._return, 2.0 * MAX_RETURN)
        elif delivered >= MIN_SAMPLE:
            self._plateau = average ** (1.0 - PACE_WEIGHT) * pace**PACE_WEIGHT
            low = max(average, BETA * self._plateau)
            seconds = max(min(RETURN / self._plateau, MAX_RETURN), RETURN_PER_PAUSE * pause)
        else:
            self._plateau = max(min((delivered + 1.0) / interval, self._plateau), pace / MAX_FALL)
            low = (BETA if number - self._cut_at > 3 else DEEP_BETA) * min(pace, self._plateau)
        if slow_start or delivered >= MIN_SAMPLE:  # the next sample starts with an empty bucket
            delivered = self._interval = 0.0
        self._delivered, self._interval = delivered, self._interval + pause
        self._plateau, self._low = max(self._plateau, MIN_RATE), max(low, MIN_RATE)
        self._return = max(seconds, min(FIRST_RETURN / self._low, MAX_RETURN))
        doubling = min(max(DOUBLE / math.sqrt(self._plateau), MIN_DOUBLE), MAX_DOUBLE)
        self._double = FIRST_DOUBLE if slow_start else doubling
        self._elapsed, self._cut_at = 0.0, self.starts
        self._due, self._last = self._last + 1.0 / self._pace(), max(self._last, now + pause)

    def _pace(self) -> float:
        if self._plateau == math.inf:
            return self._low
        if (time := self._elapsed - self._return) < 0.0:
            return self._plateau + (self._plateau - self._low) * (time / self._return) ** 3
        return self._plateau + self._plateau * (time / self._double) ** 3


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
