"""What ends a run early: its limits, and errors that every further request would meet."""

from typing import Literal

from elkimg_async.errors import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ElkImagesError,
    QuotaExceededError,
)

Limit = Literal["max_errors", "max_images", "max_total_tokens"]
FatalReason = Literal["configuration", "authentication", "quota", "dns", "tls", "proxy"]


class Budget:
    """The images and tokens that were spent, and those that requests in flight may spend.

    Images are counted as they are requested, so that their limit holds exactly. Tokens are known
    only afterwards: a request is assumed to cost what an image has cost so far, and until one has
    been made, requests go one by one. Images without a response are assumed to have cost as much.
    If the server reports no tokens, their limit is never reached.

    Args:
        max_errors: The number of failed items that ends the run. None: no limit.
        max_images: The images that may be paid for, those of `images` included. None: no limit.
        max_total_tokens: The same for tokens.
        images: Those that may have been paid for before.
        lost: Those of them whose tokens no response has reported.
        tokens: Those that were spent before.
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
        if n == 0:  # made and paid for; it is only downloaded
            return None
        reserved = self._reserved + n
        if self._max_images is not None and self._images + reserved > self._max_images:
            return "max_images"
        if self._max_tokens is not None and not self._has_tokens(reserved):
            return "max_total_tokens"
        return None

    def _has_tokens(self, reserved: int) -> bool:
        assert self._max_tokens is not None
        if not self._with_tokens and not self._unreported:
            return self._reserved == 0
        price = self._tokens / self._with_tokens if self._with_tokens else 0.0
        return self._tokens + (reserved + self._lost) * price <= self._max_tokens

    def reserve(self, n: int) -> None:
        """Note that a request for `n` images starts."""
        self._reserved += n

    def release(self, n: int) -> None:
        """Note that it is over."""
        self._reserved -= n

    def spend(self, images: int, tokens: float | None, *, responded: bool = True) -> None:
        """Note images that may have been paid for; `tokens` is None if their cost is unknown."""
        self._images += images
        if tokens is not None:
            self._with_tokens += images
            self._tokens += tokens
        elif responded:
            self._unreported = True
        else:
            self._lost += images

    def resume(self, images: int) -> None:
        """Note that lost images are requested again from a server that bills their key once."""
        self._images -= images
        self._lost -= images

    def fail(self) -> None:
        """Note that an item has failed."""
        self._errors += 1


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
        case APIError(status=407):
            return "proxy"
    return None
