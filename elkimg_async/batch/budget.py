"""What a run may spend: decides whether one more request may leave."""

from typing import Literal

Limit = Literal["max_errors", "max_images", "max_total_tokens"]


class Budget:
    """Counts what was spent and what those in flight may spend; None means no limit.

    Images are counted as they are asked for, so that their limit holds exactly. Tokens are known only
    afterwards: a request is taken to cost what an image has cost so far, and until one has been made,
    requests go one by one. What was lost without an answer is taken to have cost as much. Where the
    server tells no tokens, their limit is never reached.

    Args:
        max_errors: the failed items that end the run.
        max_images: the images that may be paid for, those of `images` included.
        max_total_tokens: the same for tokens.
        images: those that may have been paid for before.
        lost: those of them that no answer told the tokens of.
        tokens: those that were spent before.
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
        self._asked, self._lost = 0, lost
        self._priced = images - lost if tokens else 0
        self._silent = False  # an answer did not tell its tokens

    def obstacle(self, n: int) -> Limit | None:
        """The limit that a further request for `n` images may pass, with those in flight; None if none."""
        if self._max_errors is not None and self._errors >= self._max_errors:
            return "max_errors"
        if n == 0:  # made and paid for; it is only fetched
            return None
        asked = self._asked + n
        if self._max_images is not None and self._images + asked > self._max_images:
            return "max_images"
        if self._max_tokens is not None and not self._has_tokens(asked):
            return "max_total_tokens"
        return None

    def _has_tokens(self, asked: int) -> bool:
        assert self._max_tokens is not None
        if not self._priced and not self._silent:
            return self._asked == 0
        price = self._tokens / self._priced if self._priced else 0.0
        return self._tokens + (asked + self._lost) * price <= self._max_tokens

    def begin(self, n: int) -> None:
        """A request for `n` images leaves."""
        self._asked += n

    def end(self, n: int) -> None:
        """It is over, whatever became of it."""
        self._asked -= n

    def spend(self, images: int, tokens: float | None, *, answered: bool = True) -> None:
        """Images may have been paid for; `tokens` is None where nobody told what they cost."""
        self._images += images
        if tokens is not None:
            self._priced += images
            self._tokens += tokens
        elif answered:
            self._silent = True
        else:
            self._lost += images

    def take_back(self, images: int) -> None:
        """Images that count as lost are asked for again, of a server that bills their key once."""
        self._images -= images
        self._lost -= images

    def fail(self) -> None:
        """An item has failed."""
        self._errors += 1
