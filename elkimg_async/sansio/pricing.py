"""What a request costs, by the user's own price list or by the server's word.

No price is part of this package: prices change, and a wrong one is worse than none. Where neither
the server nor a price list says what a request costs, its cost is None, which means unknown and
never zero.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.requests import DEFAULT_MODEL, ImageRequest
from elkimg_async.sansio.responses import Usage

_MILLION = Decimal(1_000_000)
_TICKS_PER_DOLLAR = Decimal(10) ** 10
"""Of `cost_in_usd_ticks`, as https://docs.x.ai/developers/cost-tracking defines it."""

Price: TypeAlias = Decimal | str | int
CostFunction: TypeAlias = Callable[[Any, Usage | None], Decimal | None]


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices per million tokens of one model.

    `max_tokens_per_image` is the most output tokens that one image can take, partial images
    included, and `max_input_tokens` the most input tokens of one request. `AsyncImages.map` needs
    them for `max_cost`, the second only where input has a price; None where that is not used.
    """

    text_input: Price = Decimal(0)
    image_input: Price = Decimal(0)
    image_output: Price = Decimal(0)
    max_tokens_per_image: int | None = None
    max_input_tokens: int | None = None

    @property
    def _highest_input(self) -> Decimal:
        return max(_decimal(self.text_input), _decimal(self.image_input))

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return the cost of the tokens that the server counted; None when it did not count.

        The tokens of writing an SVG are counted apart, so its cost is None as well.
        """
        if usage is None or not usage.output_tokens or request.svg is not None:
            return None  # no image takes 0 output tokens: some servers report 0 for all of them
        details = usage.input_tokens_details
        text = details.text_tokens if details and details.text_tokens is not None else None
        image = details.image_tokens if details and details.image_tokens is not None else 0
        if text is None:
            if usage.input_tokens is None and self._highest_input:
                return None
            text = max(0, (usage.input_tokens or 0) - image)
        return self._price(text, image, usage.output_tokens)

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the most that a request can cost; None when a maximum is missing."""
        if self.max_tokens_per_image is None or request.svg is not None:
            return None
        if self.max_input_tokens is None and self._highest_input:
            return None
        output = self._price(0, 0, (request.n or 1) * self.max_tokens_per_image)
        return output + self._highest_input * (self.max_input_tokens or 0) / _MILLION

    def _price(self, text: float, image: float, output: float) -> Decimal:
        return (
            _decimal(self.text_input) * _decimal(text)
            + _decimal(self.image_input) * _decimal(image)
            + _decimal(self.image_output) * _decimal(output)
        ) / _MILLION


class ImagePrices(msgspec.Struct, frozen=True):
    """Prices per image of one model, by size and quality.

    The keys of `prices` are `(size, quality)`; None in either place stands for any value.
    """

    prices: Mapping[tuple[str | None, str | None], Price]

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return the cost of so many images; None when the list has no price for the request."""
        price = self._price(request)
        return None if price is None else price * images

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the cost of all images that are requested."""
        return self.cost(request, None, request.n or 1)

    def _price(self, request: ImageRequest) -> Decimal | None:
        for size in (request.size, None):
            for quality in (request.quality, None):
                if (size, quality) in self.prices:
                    return _decimal(self.prices[size, quality])
        return None


class Pricing:
    """A price list: what requests cost, in one currency of the user's choice.

        Pricing({"gpt-image-1.5": TokenPrices(text_input="5", image_output="32")})

    Args:
        prices: The prices of each model, or a function of a request and its usage that returns the
            cost, or None when it is unknown. The usage is None before the response, when the
            function must return the most that the request can cost if `max_cost` is used, and where
            the response has none.

    Raises:
        ConfigurationError: If `prices` is neither, or a price is not a number of at least 0.
    """

    def __init__(self, prices: Mapping[str, TokenPrices | ImagePrices] | CostFunction) -> None:
        if callable(prices):
            self._function: CostFunction | None = prices
            self._models: Mapping[str, TokenPrices | ImagePrices] = {}
            return
        self._function, self._models = None, dict(prices)
        for model, price in self._models.items():
            if not isinstance(price, (TokenPrices, ImagePrices)):
                raise ConfigurationError(
                    f"The price of {model} must be TokenPrices(…) or ImagePrices(…), "
                    f"not {type(price).__name__}."
                )
            _check(model, price)

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return what a request for so many images has cost; None when that is unknown.

        Raises:
            ConfigurationError: If the function returns anything but a price.
        """
        if self._function is not None:
            return _checked(self._function(request, usage))
        sent = _as_sent(request)
        prices = None if sent is None else self._models.get(sent.model or DEFAULT_MODEL)
        return None if prices is None or sent is None else prices.cost(sent, usage, images)

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the most that a request can cost; None when that is unknown.

        Raises:
            ConfigurationError: If the function returns anything but a price.
        """
        if self._function is not None:
            return _checked(self._function(request, None))
        sent = _as_sent(request)
        prices = None if sent is None else self._models.get(sent.model or DEFAULT_MODEL)
        return None if prices is None or sent is None else prices.worst_case(sent)

    def __repr__(self) -> str:
        return f"Pricing({self._function or self._models!r})"


def make_pricing(pricing: object) -> Pricing | None:
    """Return a price list as it is; None means none.

    Raises:
        ConfigurationError: If it is anything else.
    """
    if pricing is None or isinstance(pricing, Pricing):
        return pricing
    raise ConfigurationError(f"pricing must be Pricing(…), not {type(pricing).__name__}.")


def reported_cost(usage: Usage | None) -> Decimal | None:
    """Return the cost in dollars that the server reports; None when it reports none."""
    extra: Mapping[str, Any] = getattr(usage, "extra", None) or {}
    if (cost := _price_or_none(extra.get("cost"))) is not None:
        return cost
    ticks = _price_or_none(extra.get("cost_in_usd_ticks"))
    return None if ticks is None else ticks / _TICKS_PER_DOLLAR


def cost_of(
    pricing: Pricing | None, request: ImageRequest, usage: Usage | None, images: int
) -> Decimal | None:
    """Return what the server reports, else the cost by the price list, else None."""
    reported = reported_cost(usage)
    if reported is not None or pricing is None:
        return reported
    return pricing.cost(request, usage, images)


def _check(model: str, price: TokenPrices | ImagePrices) -> None:
    values = (
        [price.text_input, price.image_input, price.image_output]
        if isinstance(price, TokenPrices)
        else list(price.prices.values())
    )
    for value in values:
        if _price_or_none(value) is None:
            raise ConfigurationError(f"A price of {model} is {value!r}; it must be 0 or more.")
    if isinstance(price, TokenPrices):
        for name in ("max_tokens_per_image", "max_input_tokens"):
            maximum = getattr(price, name)
            if maximum is not None and (type(maximum) is not int or maximum < 0):
                raise ConfigurationError(
                    f"{name} of {model} is {maximum!r}; it must be a whole number of 0 or more."
                )


def _as_sent(request: ImageRequest) -> ImageRequest | None:
    """Return a request with what its `extra_body` replaces; None if that has no known price."""
    body = request.extra_body or {}
    own = {name: body[name] for name in ("model", "n", "size", "quality", "svg") if name in body}
    if type(own.get("n", 1)) is not int or own.get("n", 1) < 1:
        return None
    if not all(isinstance(own.get(name, ""), str) for name in ("model", "size", "quality")):
        return None
    return replace(request, **own) if own else request


def _checked(cost: object) -> Decimal | None:
    """Return what a price function has returned."""
    if cost is not None and _price_or_none(cost) is None:
        raise ConfigurationError(
            f"The price function returned {cost!r}; it must return a Decimal of 0 or more, or None."
        )
    return _price_or_none(cost)


def _decimal(value: Any) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(str(value))


def _price_or_none(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        number = _decimal(value)
    except ArithmeticError:
        return None
    return number if number.is_finite() and number >= 0 else None
