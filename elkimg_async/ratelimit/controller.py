"""Pace of requests to a server whose rate limit is unknown: CUBIC on the delivered rate.

The growth function is that of CUBIC (RFC 9438, section 4.2), applied to requests as botocore's
adaptive retry mode does. Slow start until the first 429. A 429 sets the plateau from what was
delivered lately and cuts the pace, which returns along the cubic and then probes beyond. Requests
that started before the cut do not cut again. Delivered means started and not refused, since images
take seconds. Only starts that the pace held back count as time, so idling raises nothing (5.8).
"""

import math

from elkimg_async.sansio.responses import RateLimit

MAX_PAUSE = 120.0  # seconds: no header holds everything back for longer
START_RATE = 25.0  # starts per second at the beginning
MIN_RATE = 0.1
BETA, STRICT_BETA = 0.85, 0.95  # cut to this share: of a server that admits bursts, or none
DEEP_BETA = 0.4  # the same while the rate is unknown
FIRST_RETURN, RETURN = 15.0, 75.0  # requests in which the plateau is reached again: at first, later
MIN_RETURN, MAX_RETURN = 3.0, 30.0  # but not within fewer seconds, or more,
PAUSE_RETURN = 20.0  # nor within fewer times the pause that a refusal costs
PROBE = 1.2  # growth beyond the plateau within the time of the return
LATENESS = 0.0005  # seconds by which a start may be late without being lost


class Controller:
    """Pace learned from refusals."""

    def __init__(self) -> None:
        self._plateau = self._return = math.inf
        self._low = START_RATE
        self._delivered = self._interval = 0.0
        self._position = -1.0  # on the cubic: -1 after a cut, 0 at the plateau
        self._due = self._last = -math.inf
        self._cut_at = self.starts = 0
        self._strict = 0.7  # from 0, the server admits bursts, to 1, it admits none

    @property
    def rate(self) -> float:
        """Starts per second held to; `math.inf` during slow start."""
        return math.inf if self._plateau == math.inf else self._pace()

    def ready_at(self, now: float, in_flight: int) -> float:
        """Return the time at which the next request may start."""
        return now if self._plateau == math.inf and in_flight == 0 else self._due

    def started(self, now: float) -> int:
        """Record a start; return its number."""
        gap = 1.0 / self._pace()
        if now - self._due < gap:
            passed = min(now - self._last, 2.0 * gap)
            kept = math.exp(-4.0 * passed / self._return)
            self._position += passed / self._return
            self._delivered = self._delivered * kept + 1.0
            self._interval = self._interval * kept + passed
        self._last = now
        self._due = max(self._due + gap, now + gap - LATENESS)
        self.starts += 1
        return self.starts

    def succeeded(self) -> None:
        """Record a success, which speeds slow start up."""
        if self._plateau == math.inf:
            self._low += 2.0

    def rate_limited(self, number: int, pause: float) -> None:
        """Cut the pace after a refusal, once for all starts so far; `pause` is its Retry-After."""
        if number <= self._cut_at:
            return
        admitted = number - self._cut_at - 1
        pace, beta, known = self._pace(), DEEP_BETA, 0.0
        if self._plateau == math.inf:
            self._plateau = self._measured(pace)
        elif admitted == 0:
            self._plateau = pace * BETA
        else:
            known = self._return * self._plateau / 2
            self._plateau = self._find_plateau(pace)
            beta = BETA + (STRICT_BETA - BETA) * self._strict
        self._plateau = max(self._plateau, MIN_RATE)
        self._low = max(beta * self._plateau, MIN_RATE)
        requests = min(max(known + 3.0 * admitted, FIRST_RETURN), RETURN)
        seconds = min(requests / self._plateau, MAX_RETURN)
        self._return = max(seconds, MIN_RETURN, PAUSE_RETURN * pause)
        self._delivered = self._interval = 0.0
        self._position, self._cut_at = -1.0, self.starts
        self._due = self._last + 1.0 / self._pace()

    def _find_plateau(self, pace: float) -> float:
        # A bucket admits more than its rate for a while, then refuses soon again (section 4.7).
        measured = self._measured(pace)
        if self._position < -0.7:
            self._strict /= 2.0
            return measured
        if self._position > 0.0:
            self._strict = min(1.0, self._strict + 0.2)
        return measured + self._strict * (pace - measured)

    def _measured(self, pace: float) -> float:
        # The refused request was not delivered, but a part of its token was there.
        return (
            min(pace, max(self._delivered - 0.7, 0.0) / self._interval) if self._interval else pace
        )

    def _pace(self) -> float:
        if self._plateau == math.inf:
            return self._low + self._delivered
        scale = self._plateau - self._low if self._position < 0.0 else PROBE * self._plateau
        return self._plateau + scale * self._position**3


class HeaderLimits:
    """The latest `x-ratelimit-*` headers: once nothing remains, the next start waits for `reset`.

    They are ignored for good once contradicted: by a refusal while something remains, or by the
    admission of a request that started clearly after the remaining ones and before the reset.
    """

    def __init__(self) -> None:
        self._trusted = True
        self._number = self._remaining = 0
        self._started = self._until = -math.inf

    def ready_at(self, now: float, starts: int) -> float:
        """Return the time at which the next request may start."""
        held = self._trusted and now < self._until and starts - self._number >= self._remaining
        return self._until if held else now

    def record(self, number: int, started: float, headers: RateLimit, *, refused: bool) -> None:
        """Read the headers of the response to a request."""
        later = number - self._remaining > self._number and started > self._started + 0.1
        contradicted = headers.remaining_requests if refused else later and started < self._until
        self._trusted = self._trusted and not contradicted
        remaining, reset = headers.remaining_requests, headers.reset_requests or 0.0
        # A reset of many days is a point in time.
        if remaining is not None and 0.0 < reset < 1e6 and number >= self._number:
            self._number, self._remaining, self._started = number, remaining, started
            self._until = started + min(reset, MAX_PAUSE)
