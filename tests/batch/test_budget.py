"""What ends a run early."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elkimg_async.batch.budget import Budget, CostBudget, fatal_reason, make_max_cost
from elkimg_async.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectError,
    ElkImagesError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
)


def test_budget_without_limits() -> None:
    """None means no limit."""
    budget = Budget()
    budget.reserve(10**9)
    assert budget.reached(10**9) is None


def test_budget_of_images() -> None:
    """The limit may be reached but not exceeded; a request without images returns its share."""
    budget = Budget(max_images=10, images=3)
    budget.reserve(4)
    assert budget.reached(3) is None
    assert budget.reached(4) == "max_images"
    budget.release(4)
    assert budget.reached(7) is None
    budget.reserve(7)
    budget.release(7)
    budget.spend(7, 0)
    assert budget.reached(1) == "max_images"


def test_budget_of_tokens() -> None:
    """Requests are sent one by one until a price is known; then those in flight count at it."""
    budget = Budget(max_total_tokens=1000)
    assert budget.reached(2) is None
    budget.reserve(2)
    assert budget.reached(1) == "max_total_tokens"
    budget.release(2)
    budget.spend(2, 400)
    assert budget.reached(3) is None
    assert budget.reached(4) == "max_total_tokens"
    budget.reserve(2)
    assert budget.reached(1) is None
    assert budget.reached(2) == "max_total_tokens"


def test_budget_of_errors() -> None:
    """The run ends after this number of failures."""
    budget = Budget(max_errors=2)
    budget.fail()
    assert budget.reached(1) is None
    budget.fail()
    assert budget.reached(1) == "max_errors"


def test_budget_of_tokens_never_reported() -> None:
    """A server that reports no tokens does not reach their limit.

    A failure does not lower the price of an image.
    """
    budget = Budget(max_total_tokens=1000)
    budget.reserve(1)
    budget.release(1)
    budget.spend(1, None)
    budget.reserve(5)
    assert budget.reached(100) is None
    budget.release(5)
    budget.spend(1, 300)
    assert budget.reached(2) is None
    assert budget.reached(3) == "max_total_tokens"


def test_budget_for_paid_images() -> None:
    """Downloading images that an earlier run created costs nothing."""
    assert Budget(max_images=3, images=3).reached(0) is None
    assert Budget(max_images=3, images=3).reached(1) == "max_images"


def test_budget_of_tokens_after_lost_responses() -> None:
    """Images whose tokens no response reported are assumed to cost what the others did."""
    budget = Budget(max_total_tokens=1000, images=5, lost=3, tokens=200)
    assert budget.reached(5) is None
    assert budget.reached(6) == "max_total_tokens"
    budget.spend(1, None, responded=False)
    assert budget.reached(5) == "max_total_tokens"


def test_budget_resumed_images() -> None:
    """Lost images that are requested again cost what the response says."""
    budget = Budget(max_images=5, max_total_tokens=500, images=5, lost=3, tokens=200)
    assert budget.reached(1) == "max_images"
    budget.resume(3)
    assert budget.reached(3) is None
    budget.reserve(3)
    assert budget.reached(1) == "max_images"
    budget.release(3)
    budget.spend(2, 200)
    assert budget.reached(1) is None
    assert budget.reached(2) == "max_images"


def test_budget_of_tokens_after_a_failure() -> None:
    """After a failure that may have created an image, no price is known yet.

    After a response without usage, none will be known.
    """
    budget = Budget(max_total_tokens=1000)
    budget.spend(1, None, responded=False)
    budget.reserve(1)
    assert budget.reached(1) == "max_total_tokens"
    budget.spend(1, None)
    assert budget.reached(1) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigurationError("no API key"), "configuration"),
        (AuthenticationError("unknown key", status=401), "authentication"),
        (QuotaExceededError("empty", status=403), "quota"),
        (ConnectError("no such host", phase="dns"), "dns"),
        (ConnectError("bad certificate", phase="tls"), "tls"),
        (BadRequestError("who are you?", status=407), "proxy"),
        (ConnectError("closed port", phase="connect"), None),
        (PermissionDeniedError("not this model", status=403), None),
        (RateLimitError("slow down", status=429), None),
        (NotFoundError("no such model", status=404), None),
        (InvalidRequestError("n is 99"), None),
        (None, None),
    ],
    ids=range(12),
)
def test_fatal_reason(error: ElkImagesError | None, reason: str | None) -> None:
    """Errors of the account, the client or the host end a run; those of one request do not."""
    assert fatal_reason(error) == reason


AMOUNTS = st.decimals(0, 10, places=4, allow_nan=False, allow_infinity=False)


@given(
    limit=st.decimals("0.0001", 50, places=4),
    spent=AMOUNTS,
    requests=st.lists(st.tuples(AMOUNTS, st.integers(0, 100) | st.none(), st.booleans())),
)
def test_cost_budget_is_never_exceeded(
    limit: Decimal, spent: Decimal, requests: list[tuple[Decimal, int | None, bool]]
) -> None:
    """The limit holds whatever part of its reservation a request costs, and however many run."""
    budget = CostBudget(limit, spent=spent)
    in_flight: list[tuple[Decimal, Decimal | None]] = []
    real = spent
    for worst, share, settles in requests:
        cost = None if share is None else worst * share / 100
        fits = worst <= max(Decimal(0), limit - budget.spent - budget.reserved)
        assert (budget.reached(worst) is None) == (fits or worst == 0)
        if fits:
            budget.reserve(worst)
            in_flight.append((worst, cost))
            assert worst == 0 or budget.spent + budget.reserved <= limit
        while settles and in_flight:
            reserved, paid = in_flight.pop(0)
            budget.settle(reserved, paid)
            real += reserved if paid is None else paid
    for reserved, paid in in_flight:
        budget.settle(reserved, paid)
        real += reserved if paid is None else paid
    assert (budget.spent, budget.reserved) == (real, Decimal(0))
    assert real <= max(limit, spent)


def test_cost_budget_waits_for_requests_in_flight() -> None:
    """A request that does not fit now may fit when others turn out cheaper."""
    budget = CostBudget(Decimal("1.00"))
    budget.reserve(Decimal("0.80"))
    assert budget.reached(Decimal("0.30")) == "max_cost"
    assert budget.remaining == Decimal("0.20")
    budget.settle(Decimal("0.80"), Decimal("0.10"))
    assert budget.reached(Decimal("0.30")) is None


def test_cost_budget_of_unknown_costs() -> None:
    """A request of unknown cost costs what it reserved; without a limit everything fits."""
    budget = CostBudget(Decimal(1))
    budget.reserve(Decimal("0.60"))
    budget.settle(Decimal("0.60"), None)
    assert (budget.spent, budget.remaining) == (Decimal("0.60"), Decimal("0.40"))
    unlimited = CostBudget(None)
    assert (unlimited.remaining, unlimited.reached(Decimal(10**9))) == (None, None)


def test_cost_budget_of_a_resumed_request() -> None:
    """A request that is billed once for its idempotency key does not count twice."""
    budget = CostBudget(Decimal(1), spent=Decimal("0.60"))
    budget.resume(Decimal("0.60"))
    assert budget.reached(Decimal(1)) is None
    budget.resume(None)
    assert budget.spent == 0


@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity"])
def test_cost_budget_with_a_wrong_amount(value: str) -> None:
    """An amount is 0 or more."""
    with pytest.raises(ValueError, match="amount"):
        CostBudget(Decimal(1)).reserve(Decimal(value))


@pytest.mark.parametrize("value", [Decimal(20), 20, "20", "2e1"])
def test_make_max_cost(value: Decimal | int | str) -> None:
    """The limit may be a Decimal, a whole number, or text."""
    assert make_max_cost(value) == Decimal(20)
    assert make_max_cost(None) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (20.0, r'exact: pass Decimal\("20.0"\)'),
        (float("nan"), "exact"),
        (0, "more than 0"),
        ("-1", "more than 0"),
        ("NaN", "more than 0"),
        (Decimal("Infinity"), "more than 0"),
        ("a lot", "number"),
        (True, "not bool"),
        ([20], "not list"),
    ],
    ids=repr,
)
def test_make_max_cost_of_a_wrong_value(value: object, problem: str) -> None:
    """A limit that is not exact, or not an amount above 0, is rejected."""
    with pytest.raises(ConfigurationError, match=problem):
        make_max_cost(value)
