"""Whether and when a failed attempt is retried."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    DownloadError,
    ElkImagesError,
    EmptyResultError,
    InvalidRequestError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    ServerError,
    StreamIncompleteError,
)
from elkimg_async.sansio.error_mapping import response_error
from elkimg_async.sansio.retry import RetryBudget, decide, is_transient


class Policy:
    """The policy of the contract."""

    def __init__(self, **changes: float) -> None:
        self.max_retries = int(changes.get("max_retries", 2))
        self.initial_backoff = changes.get("initial_backoff", 0.5)
        self.max_backoff = changes.get("max_backoff", 8.0)
        self.max_retry_after = changes.get("max_retry_after", 120.0)
        self.retry_unknown = bool(changes.get("retry_unknown", False))


def wait(error: ElkImagesError, attempt: int = 1, **changes: Any) -> float | None:
    options: dict[str, Any] = {"policy": Policy(), "remaining": math.inf, "jitter": 1.0, **changes}
    return decide(error, attempt=attempt, **options)


def api_error(status: int, code: Any = "", **headers: str) -> ElkImagesError:
    body = json.dumps({"error": {"message": "no", "code": code}}).encode() if code != "" else b""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return response_error(status, named, body, now=0.0)


RETRIED = [
    (408, ""),
    (425, ""),
    (429, ""),
    (429, "rate_limit_exceeded"),
    (500, "do_request_failed"),
    (503, ""),
    (503, "system_cpu_overloaded"),
    (409, "idempotency_in_flight"),
]
NOT_RETRIED = [
    (400, "x"),
    (400, "moderation_blocked"),
    (400, "content_policy_violation"),
    (400, "read_request_body_failed"),
    (401, ""),
    (401, "invalid_api_key"),
    (403, ""),
    (403, "access_denied"),
    (403, "insufficient_user_quota"),
    (403, "pre_consume_token_quota_failed"),
    (404, ""),
    (409, ""),
    (409, "conflict"),
    (413, "read_request_body_failed"),
    (422, ""),
    (429, "insufficient_quota"),
    (500, "invalid_request"),
    (501, "api_not_implemented"),
    (503, "model_not_found"),
    (301, ""),
]
UNKNOWN = [
    (500, ""),
    (500, "bad_response_body"),
    (500, "read_response_body_failed"),
    (502, ""),
    (502, "x"),
    (504, ""),
    (524, ""),
]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize(("status", "code"), RETRIED)
def test_decide_retries(status: int, code: str, replay: bool) -> None:
    """Requests that were not processed, and transient server errors, are retried."""
    assert wait(api_error(status, code), replay=replay) == 0.5


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize(("status", "code"), NOT_RETRIED)
def test_decide_gives_up(status: int, code: str, replay: bool) -> None:
    """Failures that would repeat are not retried, with replay or without."""
    assert wait(api_error(status, code), replay=replay) is None


@pytest.mark.parametrize(("status", "code"), UNKNOWN)
@pytest.mark.parametrize("should", [{}, {"x_should_retry": "true"}, {"retry_after": "1"}])
def test_decide_unknown_outcome(status: int, code: str, should: dict[str, str]) -> None:
    """A call that may have created an image is retried only with replay."""
    error = api_error(status, code, **should)
    assert error.billing == "unknown"
    assert wait(error) is None
    assert wait(error, replay=True) is not None


@pytest.mark.parametrize(
    ("error", "retried", "replayed"),
    [
        (ConnectError("x"), True, True),
        (RequestTimeoutError("x", limit="connect", billing="not_sent"), True, True),
        (RequestTimeoutError("x", limit="first_byte"), False, True),
        (RequestTimeoutError("x", limit="idle"), False, True),
        (RequestTimeoutError("x", limit="total"), False, False),
        (RequestTimeoutError("x", limit="total", billing="not_sent"), False, False),
        (DisconnectedError("x"), False, True),
        (DisconnectedError("x", billing="not_sent"), True, True),
        (NetworkError("x"), False, True),
        (ConfigurationError("x"), False, False),
        (InvalidRequestError("x"), False, False),
        (ResponseError("x"), False, False),
        (EmptyResultError("x"), False, False),
        (StreamIncompleteError("x"), False, False),
        (DownloadError("x"), False, False),
        (APIError("x", status=200), False, False),
        (RateLimitError("x", status=200), False, False),
        (ServerError("x", status=None), False, False),
    ],
    ids=repr,
)
def test_decide_other_errors(error: ElkImagesError, retried: bool, replayed: bool) -> None:
    """A request that was not sent is retried; one that may have arrived only with replay."""
    assert (wait(error) is not None, wait(error, replay=True) is not None) == (retried, replayed)
    assert (is_transient(error), is_transient(error, replay=True)) == (retried, replayed)


def test_is_transient_covers_every_class() -> None:
    """No error class causes a retry that could cost a second image."""
    for name in errors.__all__:
        cls = getattr(errors, name)
        if isinstance(cls, type):
            assert not is_transient(cls("x", billing="unknown")) or cls is ConnectError
            assert not is_transient(cls("x", billing="billed")) or cls is ConnectError


@pytest.mark.parametrize(
    ("status", "code", "should", "retried"),
    [
        (429, "", "false", False),
        (503, "", "false", False),
        (409, "idempotency_in_flight", "false", False),
        (400, "x", "true", True),
        (404, "x", "true", True),
        (409, "x", "true", True),
        (500, "invalid_request", "true", True),
        (503, "model_not_found", "true", True),
        (403, "insufficient_user_quota", "true", False),
        (429, "", "maybe", True),
        (400, "x", "maybe", False),
        (400, "x", "", False),
    ],
)
def test_decide_x_should_retry(status: int, code: str, should: str, retried: bool) -> None:
    """The server's header overrides the table, unless a retry would cost money or be futile."""
    error = api_error(status, code, x_should_retry=should)
    assert (wait(error) is not None) is retried


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 0), (1, 1), (2, 2), (5, 5)])
def test_decide_counts_retries(max_retries: int, attempts: int) -> None:
    """`max_retries` counts retries, without the first attempt."""
    policy = Policy(max_retries=max_retries)
    retried = [
        attempt
        for attempt in range(1, 9)
        if wait(ConnectError("x"), attempt, policy=policy) is not None
    ]
    assert retried == list(range(1, attempts + 1))


def test_decide_backs_off() -> None:
    """The limit of the delay doubles from 0.5 to 8 seconds, with full jitter."""
    policy = Policy(max_retries=100)
    error = ConnectError("x")
    waits = [wait(error, attempt, policy=policy) for attempt in range(1, 8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert [wait(error, 3, policy=policy, jitter=jitter) for jitter in (0.0, 0.25, 1.0)] == [
        0,
        0.5,
        2,
    ]
    assert wait(error, 3, policy=Policy(max_retries=9, initial_backoff=0.0)) == 0.0
    assert wait(error, 1, policy=Policy(initial_backoff=3.0, max_backoff=2.0)) == 2.0
    assert wait(error, 100, policy=policy) == 8.0


def test_decide_backs_off_without_end() -> None:
    """The delay stays bounded after hours of retries."""
    for attempt in (1_023, 1_025, 5_000):
        assert wait(ConnectError("x"), attempt, policy=Policy(max_retries=10_000)) == 8.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after": "120"}, 120.0),
        ({"retry_after": "121"}, None),
        ({"retry_after": "86400"}, None),
        ({"retry_after": "soon"}, 0.5),
        ({"retry_after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 60.0),
        ({"retry_after": "Thu, 01 Jan 2970 00:01:00 GMT"}, None),
    ],
)
def test_decide_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Retry-After is followed exactly up to the limit; beyond it the call fails."""
    for jitter in (0.0, 1.0):
        found = wait(api_error(429, **headers), jitter=jitter)
        assert found == (expected if expected != 0.5 else 0.5 * jitter)


def test_decide_retry_after_of_the_policy() -> None:
    """The limit on Retry-After is that of the policy."""
    error = api_error(503, retry_after="7")
    assert wait(error, policy=Policy(max_retry_after=6.0)) is None
    assert wait(error, policy=Policy(max_retry_after=7.0)) == 7.0
    assert wait(api_error(400, "x", retry_after="7")) is None


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [(math.inf, 0.5), (0.6, 0.5), (0.5, None), (0.4, None), (0.0, None), (-1.0, None)],
)
def test_decide_remaining_time(remaining: float, expected: float | None) -> None:
    """A delay that would exceed the deadline is not started."""
    assert wait(ConnectError("x"), remaining=remaining) == expected
    assert wait(api_error(429, retry_after="0.5"), remaining=remaining) == expected
    assert wait(ConnectError("x"), remaining=remaining, jitter=0.0) == (
        0.0 if remaining > 0 else None
    )


@given(
    attempt=st.integers(1, 60),
    jitter=st.floats(0, 1),
    remaining=st.floats(0, 1_000),
    initial=st.floats(0, 100),
    most=st.floats(0, 100),
)
def test_decide_stays_within_bounds(
    attempt: int, jitter: float, remaining: float, initial: float, most: float
) -> None:
    """A delay is never negative, over the limit, or past the deadline."""
    policy = Policy(max_retries=60, initial_backoff=initial, max_backoff=most)
    found = wait(ConnectError("x"), attempt, policy=policy, jitter=jitter, remaining=remaining)
    assert found is None or 0 <= found <= most
    assert found is None or found < remaining


def test_retry_budget_is_used_up_and_refilled() -> None:
    """Retries use the budget, and successes refill it up to its capacity."""
    budget = RetryBudget(2)
    assert [budget.acquire() for _ in range(4)] == [True, True, False, False]
    assert budget.remaining == 0
    budget.release()
    assert [budget.acquire(), budget.acquire()] == [True, False]
    for _ in range(5):
        budget.release()
    assert budget.remaining == 2
    assert not RetryBudget(0).acquire()
