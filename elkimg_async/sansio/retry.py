"""Whether and when a failed attempt is retried.

A repeated POST can be a second paid image, so a failure whose outcome is unknown ends the call,
unless the server is known to replay the response for an idempotency key.
"""

import re
from typing import Protocol

from elkimg_async.errors import (
    APIError,
    ConnectError,
    ElkImagesError,
    NetworkError,
    QuotaExceededError,
    RequestTimeoutError,
    ServerError,
)

# 408 and 425: the request was not processed. 429: the rate was too high. A ServerError whose
# billing is not unknown means that processing never began.
_TRANSIENT_STATUSES = {408, 425, 429}
_FINAL_CODES = {"invalid_request", "model_not_found"}
# The code or type of a 409 about an earlier attempt of ours that is still running.
_IN_FLIGHT = re.compile("idempoten.*(in_flight|in_progress|in_use|processing|concurrent)")


class RetryBudget:
    """The remaining retries of all calls of a client, which keep an outage from being multiplied.

    A retry acquires one and a success releases one, as in the standard retry mode of the AWS SDKs:
    https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = self.remaining = capacity

    def acquire(self) -> bool:
        """Acquire one retry; return False if none remains."""
        if self.remaining < 1:
            return False
        self.remaining -= 1
        return True

    def release(self) -> None:
        """Release one retry after a success."""
        self.remaining = min(self._capacity, self.remaining + 1)


class Policy(Protocol):
    """The part of `RetryPolicy` that the decision needs."""

    @property
    def max_retries(self) -> int: ...
    @property
    def initial_backoff(self) -> float: ...
    @property
    def max_backoff(self) -> float: ...
    @property
    def max_retry_after(self) -> float: ...
    @property
    def retry_unknown(self) -> bool: ...


def decide(
    error: ElkImagesError,
    *,
    policy: Policy,
    attempt: int,
    remaining: float,
    jitter: float,
    replay: bool = False,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    Args:
        error: The failure.
        policy: The retry policy.
        attempt: Number of attempts so far.
        remaining: Seconds until the deadline.
        jitter: A random number from 0 to 1.
        replay: Whether the server is known to replay the response for an idempotency key.
    """
    # A delay that the server wants is kept or the call ends: an earlier request would be rejected
    # again. Without one, exponential back-off with full jitter spreads the calls of all clients:
    # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    replay = replay or policy.retry_unknown
    if attempt > policy.max_retries or not is_transient(error, replay=replay):
        return None
    retry_after = error.retry_after if isinstance(error, APIError) else None
    if retry_after is not None and retry_after > policy.max_retry_after:
        return None
    delay = jitter * backoff(policy, attempt) if retry_after is None else retry_after
    # To wait past the deadline would only delay the error.
    return delay if delay < remaining else None


def backoff(policy: Policy, attempt: int) -> float:
    """Return the longest delay after this number of attempts, in seconds."""
    # 2.0 ** 1024 raises, and no delay needs more than 2 ** 60.
    return min(policy.max_backoff, policy.initial_backoff * 2.0 ** min(attempt - 1, 60))


def is_transient(error: ElkImagesError, *, replay: bool = False) -> bool:
    """Return whether the same request may succeed later, without the cost of a second image."""
    # From what happened before the request left, through what is unknown, to what the server said.
    # Only the server's own claim that a retry helps or not, `x-should-retry`, outweighs its status;
    # nothing outweighs that an image may have been paid for.
    if isinstance(error, RequestTimeoutError) and error.limit == "total":
        return False
    if isinstance(error, ConnectError):
        return error.phase not in ("tls", "proxy")  # certificates and settings stay wrong
    if isinstance(error, NetworkError):
        return error.billing == "not_sent" or replay
    if not isinstance(error, APIError) or isinstance(error, QuotaExceededError):
        return False
    if error.billing == "unknown":
        return replay
    # A header of OpenAI's API, which its own clients obey.
    should_retry = error.headers.get("x-should-retry")
    if should_retry in ("true", "false"):
        return should_retry == "true"
    if _FINAL_CODES & {error.code, error.type}:
        return False
    if error.status == 409:
        return is_in_flight(error)
    never_begun = isinstance(error, ServerError) and (error.status or 0) >= 500
    return never_begun or error.status in _TRANSIENT_STATUSES


def is_in_flight(error: APIError) -> bool:
    """Return whether the server is still busy with an earlier attempt of the same request."""
    labels = (error.code or "", error.type or "")
    return error.status == 409 and any(_IN_FLIGHT.search(label) for label in labels)
