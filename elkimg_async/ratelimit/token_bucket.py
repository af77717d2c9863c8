"""Token bucket for the explicit `Limits` of a client."""

# Share of a minute's tokens that may be spent in a burst, so that a late timer loses nothing.
BURST = 0.01
ROUNDING = 1e-9


class TokenBucket:
    """A limit per minute, refilled continuously."""

    def __init__(self, per_minute: float) -> None:
        self._capacity = self._level = 1.0 + per_minute * BURST
        self._rate = per_minute * (1.0 - BURST) / 60.0
        self._at = 0.0

    def ready_at(self, tokens: float, now: float) -> float:
        """Return when `tokens` can be acquired; more than the capacity requires a full bucket."""
        if now > self._at:
            self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now
        missing = min(tokens, self._capacity) - self._level
        return now if missing <= ROUNDING else now + missing / self._rate

    def acquire(self, tokens: float) -> None:
        """Remove tokens that are ready; more than the capacity leaves a debt for later requests."""
        self._level -= tokens
