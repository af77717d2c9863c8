"""Reasons to end a run early: its limits, and errors that every further request would meet."""

from decimal import Decimal
from typing import Literal

from elkimg_async.errors import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ElkImagesError,
    QuotaExceededError,
)

Limit = Literal["max_errors", "max_images", "max_total_tokens", "max_cost"]
FatalReason = Literal["configuration", "authentication", "quota", "dns", "tls", "proxy"]

_ZERO = Decimal(0)


class Budget:
    """The images and tokens that were spent, and those that requests in flight may spend.

    Images are counted when they are requested, so that their limit holds exactly. Tokens are known
    only afterwards: a request is assumed to cost as much as an image has cost so far, and until
    that is known, requests are sent one by one. Images without a response are assumed to have cost
    as much. If the server reports no tokens, their limit is never reached.

    Args:
        max_errors: The number of failed items that ends the run. None: no limit.
        max_images: The images that may be paid for, including `images`. None: no limit.
        max_total_tokens: The tokens that may be spent, including `tokens`. None: no limit.
        images: Images that earlier runs may have paid for.
        lost: The number of them whose tokens no response has reported.
        tokens: Tokens that earlier runs have spent.
    """

    def __init__(
        self,
        *,
        max_errors: int | None = None,
        max_images: int | None = None,
        max_total_tokens: float | None = None,
        images: int = 0,
        lost: int = 0,
        tokens: float = 0,
    ) -> None:
        self._max_errors, self._max_images = max_errors, max_images
        self._max_tokens = max_total_tokens
        self._images, self._tokens, self._errors = images, tokens, 0
        self._reserved, self._lost = 0, lost
        self._with_tokens = images - lost if tokens else 0  # images whose tokens are known
        self._unreported = False  # a response came without its tokens

    def reached(self, n: int) -> Limit | None:
        """Return the limit that a further request for `n` images may exceed, or None."""
        if self._max_errors is not None and self._errors >= self._max_errors:
            return "max_errors"
        if n == 0:  # already paid for, and only downloaded
            return None
        # Requests in flight count in full: the limit holds even if all of them are paid for.
        reserved = self._reserved + n
        if self._max_images is not None and self._images + reserved > self._max_images:
            return "max_images"
        if self._max_tokens is not None and not self._has_tokens(reserved):
            return "max_total_tokens"
        return None

    def _has_tokens(self, reserved: int) -> bool:
        assert self._max_tokens is not None
        # Without a known price one request is sent at a time, unless the server reports none at
        # all, since the run would stay that slow.
        if not self._with_tokens and not self._unreported:
            return self._reserved == 0
        price = self._tokens / self._with_tokens if self._with_tokens else 0.0
        return self._tokens + (reserved + self._lost) * price <= self._max_tokens

    def reserve(self, n: int) -> None:
        """Record that a request for `n` images starts."""
        self._reserved += n

    def release(self, n: int) -> None:
        """Record that a request for `n` images has ended."""
        self._reserved -= n

    def spend(self, images: int, tokens: float | None, *, responded: bool = True) -> None:
        """Record images that may have been paid for; `tokens` is None if their cost is unknown."""
        self._images += images
        if tokens is not None:
            self._with_tokens += images
            self._tokens += tokens
        elif responded:
            self._unreported = True
        else:
            self._lost += images

    def resume(self, images: int) -> None:
        """Record that lost images are requested again, billed once for their idempotency key."""
        # Counted by `JournalIndex` as an attempt of its own; the response counts it again.
        self._images -= images
        self._lost -= images

    def fail(self) -> None:
        """Record that an item has failed."""
        self._errors += 1


class CostBudget:
    """The money that a run has spent, and that its requests in flight may spend.

    Each request reserves its maximum cost before it is sent, and settles its cost afterwards, so
    that the limit is never exceeded, however many are in flight. A request of unknown cost counts
    as its maximum.

    Args:
        max_cost: The limit. None: no limit.
        spent: The amount that earlier runs may have spent.
    """

    def __init__(self, max_cost: Decimal | None, *, spent: Decimal = _ZERO) -> None:
        self._max_cost = max_cost
        self.spent = _amount(spent)
        self.reserved = _ZERO

    @property
    def remaining(self) -> Decimal | None:
        """The amount that a further request may reserve; None without a limit."""
        if self._max_cost is None:
            return None
        return max(_ZERO, self._max_cost - self.spent - self.reserved)

    def reached(self, worst: Decimal | None) -> Limit | None:
        """Return the limit if a further request may exceed it; None if it cannot.

        A request that costs nothing, since its images are paid for, never exceeds it.
        """
        if not worst or self.remaining is None or _amount(worst) <= self.remaining:
            return None
        return "max_cost"

    def reserve(self, worst: Decimal) -> None:
        """Record that a request starts that costs at most `worst`."""
        self.reserved += _amount(worst)

    def resume(self, cost: Decimal | None) -> None:
        """Record that a lost request is sent again, billed once for its idempotency key."""
        self.spent -= _ZERO if cost is None else _amount(cost)

    def settle(self, worst: Decimal, cost: Decimal | None) -> None:
        """Replace the reservation of a request with its cost; None if that is unknown."""
        self.reserved -= _amount(worst)
        self.spent += _amount(worst if cost is None else cost)


def check_count(name: str, value: object) -> None:
    """Check an option that is a number of things.

    Raises:
        ConfigurationError: If it is not a whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{name} must be a whole number of at least 1.")


def make_max_cost(value: object) -> Decimal | None:
    """Return the `max_cost` argument of `map` as a Decimal; None means no limit.

    Raises:
        ConfigurationError: If it is not a Decimal, int or string of more than 0.
    """
    if value is None:
        return None
    if isinstance(value, float):
        raise ConfigurationError(
            f'max_cost must be exact: pass Decimal("{value}") instead of the float.'
        )
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str)):
        raise ConfigurationError(f"max_cost must be a Decimal, not {type(value).__name__}.")
    try:
        limit = Decimal(value)
    except ArithmeticError:
        raise ConfigurationError(f"max_cost must be a number, not {value!r}.") from None
    if not (limit.is_finite() and limit > 0):
        raise ConfigurationError("max_cost must be more than 0.")
    return limit


def _amount(value: Decimal) -> Decimal:
    # A negative amount would raise the limit unnoticed, and NaN cannot be compared with it.
    if not (value.is_finite() and value >= 0):
        raise ValueError(f"an amount of money cannot be {value}")
    return value


def fatal_reason(error: ElkImagesError | None) -> FatalReason | None:
    """Return why every further request would fail like this one; None if it would not."""
    match error:
        case ConfigurationError():
            return "configuration"
        case AuthenticationError():
            return "authentication"
        case QuotaExceededError():
            return "quota"
        case ConnectError(phase="dns" | "tls"):
            return "dns" if error.phase == "dns" else "tls"
        case APIError(status=407) | ConnectError(status=407):
            return "proxy"
    return None
