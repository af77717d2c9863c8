"""The rate limit of the local server: a token bucket of requests."""

import math

from elkimg_async.local.responses import duration

_MINUTE = 60.0


class RequestBucket:
    """A bucket that is full at first and fills evenly; `now` is in seconds of one clock."""

    def __init__(
        self, per_minute: float, *, burst: int | None, send_headers: bool, now: float
    ) -> None:
        self.per_minute, self._burst, self._send_headers = per_minute, burst, send_headers
        self._tokens, self._filled_at = float(self._capacity), now

    @property
    def _capacity(self) -> int:
        return max(1, int(self.per_minute)) if self._burst is None else self._burst

    def change(self, per_minute: float, now: float) -> None:
        """Fill at another rate from now on."""
        self._fill(now)
        self.per_minute = per_minute

    def take(self, now: float) -> tuple[bool, dict[str, str]]:
        """Return whether one more request is allowed, and the rate-limit headers."""
        self._fill(now)
        allowed = self._tokens >= 1.0
        if allowed:
            self._tokens -= 1.0
        if not self._send_headers:
            return allowed, {}
        capacity, per_second = self._capacity, self.per_minute / _MINUTE
        headers = {
            "x-ratelimit-limit-requests": str(capacity),
            "x-ratelimit-remaining-requests": str(int(self._tokens)),
            "x-ratelimit-reset-requests": duration((capacity - self._tokens) / per_second),
        }
        if not allowed:
            headers["retry-after-ms"] = str(math.ceil((1.0 - self._tokens) / per_second * 1000))
        return allowed, headers

    def _fill(self, now: float) -> None:
        added = (now - self._filled_at) * self.per_minute / _MINUTE
        self._tokens = min(float(self._capacity), self._tokens + added)
        self._filled_at = now
