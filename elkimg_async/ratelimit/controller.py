"""Pace of requests to a server whose rate limit is unknown: CUBIC on the delivered rate.

The growth function is that of CUBIC (RFC 9438, section 4.2), applied to a rate of requests as botocore's adaptive
retry mode does. Slow start until the first 429. A 429 sets the plateau from what was delivered lately, and cuts the
pace; it returns to the plateau along the concave part of the cubic within about a hundred requests, then probes
beyond it along the convex part. A request that started before the latest cut does not cut again.

The pace is a rate of starts, so "delivered" means started and not refused: a refusal arrives within
milliseconds, an image after seconds. Only starts that the pace held back count as elapsed time, so that neither an
idle client nor a pause raises it (section 5.8). All times are seconds of one monotonic clock.
"""

import math

from elkimg_async.sansio.responses import RateLimit

MAX_PAUSE = 120.0  # seconds: no header holds everything back for longer
START_RATE = 25.0  # starts per second at the beginning
MIN_RATE = 0.1
BETA = 0.85  # multiplicative decrease where the server admits bursts; nearer to 1 where it does not
DEEP_BETA = 0.5  # multiplicative decrease while the rate is unknown
RETURN = 60.0  # requests within which the plateau is reached again,
MIN_RETURN = 3.0  # but not within fewer seconds,
PAUSE_RETURN = 20.0  # nor within fewer times the pause that a refusal costs
PROBE = 1.2  # growth beyond the plateau, in the time of the return
LATENESS = 0.0005  # seconds by which a start may be late without being lost
KEEP = 0.5
GROW = 3.0
MINN = 10.0
MIXUP = 0.2
MIXDOWN = 0.5
BETA2 = 0.95
EARLYX = -0.5
BIAS = 0.7
MIX = 0.7
TAU = 0.5
ZP = 0.8


class Controller:
    """Pace learned from refusals."""

    __slots__ = (
        "_cut_at", "_delivered", "_due", "_elapsed", "_interval", "_last", "_low", "_plateau", "_return", "_tight",
        "starts",
    )  # fmt: skip

    def __init__(self) -> None:
        self._plateau = self._return = math.inf
        self._low = START_RATE
        self._elapsed = self._delivered = self._interval = 0.0
        self._due = self._last = -math.inf
        self._cut_at = 0
        self._tight = MIX
        self.starts = 0
        """Number of starts."""

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
            kept = math.exp(-passed / (TAU * self._return))
            self._elapsed += passed
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
        """Cut the pace, once for all requests that had started by now.

        Args:
            number: Which start was refused.
            pause: Seconds that the server asked to wait, or 0.
        """
        if number <= self._cut_at:
            return
        admitted = number - self._cut_at - 1
        pace, requests = self._pace(), 0.0
        measured = max(self._delivered - BIAS, 0.0) / self._interval if self._interval else pace
        beta = DEEP_BETA
        if self._plateau == math.inf:
            plateau = min(pace, measured)
        elif admitted == 0:
            plateau = pace * ZP
        else:
            requests = KEEP * self._return * self._plateau
            plateau = self._find_plateau(pace, measured)
            beta = BETA + (BETA2 - BETA) * self._tight
        self._plateau = max(plateau, MIN_RATE)
        self._low = max(beta * self._plateau, MIN_RATE)
        requests = min(max(requests + GROW * admitted, MINN), RETURN)
        self._return = max(requests / self._plateau, MIN_RETURN, PAUSE_RETURN * pause)
        self._elapsed = self._delivered = self._interval = 0.0
        self._cut_at = self.starts
        self._due = self._last + 1.0 / self._pace()

    def _find_plateau(self, pace: float, measured: float) -> float:
        x = self._elapsed / self._return - 1.0
        if x < EARLYX:
            self._tight *= MIXDOWN
            return min(pace, measured)
        if x > 0.0:
            self._tight = min(1.0, self._tight + MIXUP)
        return min(pace, measured + self._tight * (pace - measured))

    def _pace(self) -> float:
        if self._plateau == math.inf:
            return self._low + self._delivered
        x = self._elapsed / self._return - 1.0
        if x < 0.0:
            return self._plateau + (self._plateau - self._low) * x**3
        return self._plateau * (1.0 + PROBE * x**3)


class HeaderLimits:
    """The latest `x-ratelimit-*` headers: `remaining: 0` waits for `reset`.

    They are ignored for good once they are contradicted: by a refusal that says that something remains, or by the
    admission of a request that started after all that remained, and before the reset.
    """

    __slots__ = ("_number", "_remaining", "_trusted", "_until")

    def __init__(self) -> None:
        self._trusted = True
        self._number = self._remaining = 0
        self._until = -math.inf

    def ready_at(self, now: float, starts: int) -> float:
        """Return the time at which the next request may start."""
        held = self._trusted and now < self._until and starts - self._number >= self._remaining
        return self._until if held else now

    def succeeded(self, number: int, started: float, rate_limit: RateLimit) -> None:
        """Read the headers of a success."""
        if 0 < self._number < number - self._remaining and started < self._until:
            self._trusted = False
        self._read(number, started, rate_limit)

    def rate_limited(self, number: int, started: float, rate_limit: RateLimit) -> None:
        """Read the headers of a 429."""
        if rate_limit.remaining_requests:
            self._trusted = False
        self._read(number, started, rate_limit)

    def _read(self, number: int, started: float, rate_limit: RateLimit) -> None:
        remaining, reset = rate_limit.remaining_requests, rate_limit.reset_requests
        if remaining is None or reset is None or not 0.0 < reset < 1e6 or number < self._number:
            return
        self._number, self._remaining = number, remaining
        self._until = started + min(reset, MAX_PAUSE)
