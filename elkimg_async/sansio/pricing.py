"""The cost of a request, as reported by the server or according to the user's prices.

The package contains no prices, since they change, and a wrong one is worse than none. If the server
reports no cost and there is no price for the request, its cost is None, which means unknown and
never zero. Amounts in different currencies are never added.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, ImageRequest
from elkimg_async.sansio.responses import Usage

_MILLION = Decimal(1_000_000)
_TICKS_PER_DOLLAR = Decimal(10) ** 10
"""Of `cost_in_usd_ticks`, as https://docs.x.ai/developers/cost-tracking defines it."""

_COSTS = ("cost", "total_cost", "estimated_cost")
"""The names under which servers report a cost, in US dollars unless they name a currency."""
_DOLLAR_COSTS = ("cost_usd", "total_cost_usd")
_COST_FIELDS = {*_COSTS, *_DOLLAR_COSTS, "cost_in_usd_ticks"}
_UNITS = ("currency", "cost_currency", "currency_code")
"""The names under which a currency is reported."""
_SYMBOLS = {"US$": "USD", "$": "USD", "€": "EUR", "£": "GBP"}
_CURRENCY = re.compile("[A-Z]{3}")
USD = "USD"

Price: TypeAlias = Decimal | str | int
CostFunction: TypeAlias = Callable[[Any, Usage | None], Decimal | None]


class Cost(NamedTuple):
    """An amount of money; `currency` is an ISO 4217 code."""

    amount: Decimal
    currency: str


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices per million tokens of one model.

    `text_output` is the price of output tokens that the server reports as text; None means that of
    `image_output`. `max_tokens_per_image` is the maximum number of output tokens of one image,
    including its partial images, and `max_input_tokens` the maximum number of input tokens of one
    request. `AsyncImages.map` requires both for `max_cost`, the latter only if input has a price.
    """

    text_input: Price = Decimal(0)
    image_input: Price = Decimal(0)
    image_output: Price = Decimal(0)
    text_output: Price | None = None
    max_tokens_per_image: int | None = None
    max_input_tokens: int | None = None

    @property
    def _highest_input(self) -> Decimal:
        return max(_decimal(self.text_input), _decimal(self.image_input))

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return the cost of the reported tokens; None if they do not determine it.

        The tokens for writing an SVG are counted separately, so its cost is None as well.
        """
        if usage is None or not usage.output_tokens or _is_svg(request):
            return None  # no image takes 0 output tokens: some servers report 0 for all of them
        cost = self._input_cost(request, usage)
        if cost is None:
            return None
        details = usage.output_tokens_details
        text = (details.text_tokens if details else None) or 0
        return cost + self._output_cost(max(0, usage.output_tokens - text), text)

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the maximum cost of a request; None if a maximum is missing."""
        if self.max_tokens_per_image is None or _is_svg(request):
            return None
        if self.max_input_tokens is None and self._highest_input:
            return None
        tokens = (request.n or 1) * self.max_tokens_per_image
        output = max(self._output_cost(tokens, 0), self._output_cost(0, tokens))
        return output + self._highest_input * (self.max_input_tokens or 0) / _MILLION

    def _input_cost(self, request: ImageRequest, usage: Usage) -> Decimal | None:
        text_price, image_price = _decimal(self.text_input), _decimal(self.image_input)
        if not self._highest_input:
            return Decimal(0)
        details, total = usage.input_tokens_details, usage.input_tokens
        text = details.text_tokens if details else None
        image = details.image_tokens if details else None
        if text is None and image is None:
            is_mixed = isinstance(request, EditRequest) and text_price != image_price
            if total is None or is_mixed:
                return None  # the input of an edit is text and images, in an unknown ratio
            text, image = max(0, total), 0
        if text is None:
            text = None if total is None else max(0, total - (image or 0))
        if image is None:
            image = None if total is None else max(0, total - (text or 0))
        if (text is None and text_price) or (image is None and image_price):
            return None
        return (text_price * _decimal(text or 0) + image_price * _decimal(image or 0)) / _MILLION

    def _output_cost(self, image: float, text: float) -> Decimal:
        price = self.image_output if self.text_output is None else self.text_output
        cost = _decimal(self.image_output) * _decimal(image) + _decimal(price) * _decimal(text)
        return cost / _MILLION


class ImagePrices(msgspec.Struct, frozen=True):
    """Prices per image of one model, by size and quality.

    The keys of `prices` are `(size, quality)`; None in either place stands for any value.
    """

    prices: Mapping[tuple[str | None, str | None], Price]

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return the cost of so many images; None if there is no price for the request."""
        price = self._price(request)
        return None if price is None else price * images

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the cost of all requested images; None if there is no price for the request."""
        return self.cost(request, None, request.n or 1)

    def _price(self, request: ImageRequest) -> Decimal | None:
        for size in (request.size, None):
            for quality in (request.quality, None):
                if (size, quality) in self.prices:
                    return _decimal(self.prices[size, quality])
        return None


class Pricing:
    """The prices of requests, in one currency.

        Pricing({"gpt-image-1.5": TokenPrices(text_input="5", image_output="32")})

    Args:
        prices: The prices of each model, or a function of a request and its usage that returns the
            cost, or None if it is unknown. The usage is None if the response has none, and before
            the response: for `max_cost`, the function then has to return the maximum cost.
        currency: The currency of all prices, as an ISO 4217 code such as `EUR`.

    Raises:
        ConfigurationError: If `prices` is neither, a price is not a number of at least 0, or the
            currency is not a code of three letters.
    """

    def __init__(
        self,
        prices: Mapping[str, TokenPrices | ImagePrices] | CostFunction,
        *,
        currency: str = USD,
    ) -> None:
        self.currency = _check_currency(currency)
        if callable(prices):
            self._function: CostFunction | None = prices
            self._models: Mapping[str, TokenPrices | ImagePrices] = {}
            return
        if not isinstance(prices, Mapping):
            raise ConfigurationError(
                "prices must be a mapping of models to TokenPrices(…) or ImagePrices(…), or a "
                f"function, not {type(prices).__name__}."
            )
        self._function, self._models = None, dict(prices)
        for model, price in self._models.items():
            if not isinstance(price, (TokenPrices, ImagePrices)):
                raise ConfigurationError(
                    f"The price of {model} must be TokenPrices(…) or ImagePrices(…), "
                    f"not {type(price).__name__}."
                )
            _check(model, price)

    def cost(self, request: ImageRequest, usage: Usage | None, images: int) -> Decimal | None:
        """Return the cost of a request that returned so many images; None if unknown.

        Raises:
            ConfigurationError: If the function returns anything but a price.
        """
        if self._function is not None:
            return _checked(self._function(request, usage))
        sent = _as_sent(request)
        prices = None if sent is None else self._models.get(sent.model or DEFAULT_MODEL)
        return None if prices is None or sent is None else prices.cost(sent, usage, images)

    def worst_case(self, request: ImageRequest) -> Decimal | None:
        """Return the maximum cost of a request; None if unknown.

        Raises:
            ConfigurationError: If the function returns anything but a price.
        """
        if self._function is not None:
            return _checked(self._function(request, None))
        sent = _as_sent(request)
        prices = None if sent is None else self._models.get(sent.model or DEFAULT_MODEL)
        return None if prices is None or sent is None else prices.worst_case(sent)

    def __repr__(self) -> str:
        return f"Pricing({self._function or self._models!r}, currency={self.currency!r})"


def make_pricing(pricing: object) -> Pricing | None:
    """Return the `pricing` argument of a client after checking it.

    Raises:
        ConfigurationError: If it is neither a `Pricing` nor None.
    """
    if pricing is None or isinstance(pricing, Pricing):
        return pricing
    raise ConfigurationError(f"pricing must be Pricing(…), not {type(pricing).__name__}.")


def reported_cost(
    usage: Usage | None, extra: Mapping[str, Any] | None = None, header: str | None = None
) -> Cost | None:
    """Return the cost that the server reports; None if it reports none, or not in a currency.

    Args:
        usage: The usage of the response, which most servers add the cost to.
        extra: The other fields of the response, which may have the cost as well.
        header: The header with the cost, as sent by LiteLLM. None: there was none.
    """
    fields: Mapping[str, Any] = getattr(usage, "extra", None) or {}
    extra = extra or {}
    unit = _unit_in(extra) or USD
    in_header = _price_or_none(header)
    return (
        _cost_in_usage(fields, unit)
        or _cost_in(extra, unit)
        or (None if in_header is None else Cost(in_header, USD))
    )


def _cost_in_usage(fields: Mapping[str, Any], unit: str) -> Cost | None:
    cost = _cost_in(fields, unit)
    details = fields.get("cost_details")
    if cost is not None and fields.get("is_byok") is True and isinstance(details, Mapping):
        # With the user's own API key for the upstream, OpenRouter's `cost` is only its fee.
        upstream = _price_or_none(details.get("upstream_inference_cost")) or 0
        return Cost(cost.amount + upstream, cost.currency)
    return cost


def _cost_in(fields: Mapping[str, Any], unit: str) -> Cost | None:
    if _COST_FIELDS.isdisjoint(fields):
        return None
    unit = _unit_in(fields) or unit
    for name in _COSTS:
        cost, currency = fields.get(name), unit
        if isinstance(cost, Mapping):  # a breakdown, as of Perplexity
            currency = _unit_in(cost) or unit
            totals = [cost.get(name) for name in ("total_cost", "total", "amount", "value")]
            cost = next((total for total in totals if total is not None), None)
        amount = _price_or_none(cost)
        if amount is not None and _CURRENCY.fullmatch(currency):
            return Cost(amount, currency)
    for name in _DOLLAR_COSTS:
        if (amount := _price_or_none(fields.get(name))) is not None:
            return Cost(amount, USD)
    ticks = _price_or_none(fields.get("cost_in_usd_ticks"))
    return None if ticks is None else Cost(ticks / _TICKS_PER_DOLLAR, USD)


def _unit_in(fields: Mapping[str, Any]) -> str | None:
    """Return the unit of the costs in these fields, in capitals; None if there is none."""
    if (source := fields.get("paymentSource")) and str(source).upper() != USD:
        return str(source) + " (not a currency)"  # NanoGPT bills in cryptocurrencies as well
    named = next((fields[name] for name in _UNITS if fields.get(name)), None)
    return None if named is None else _SYMBOLS.get(str(named), str(named).upper())


def cost_of(
    pricing: Pricing | None,
    request: ImageRequest,
    usage: Usage | None,
    images: int,
    *,
    extra: Mapping[str, Any] | None = None,
    header: str | None = None,
) -> Cost | None:
    """Return the cost that the server reports, else the one according to the prices, else None."""
    reported = reported_cost(usage, extra, header)
    if reported is not None or pricing is None:
        return reported
    cost = pricing.cost(request, usage, images)
    return None if cost is None else Cost(cost, pricing.currency)


def _check_currency(currency: object) -> str:
    if isinstance(currency, str) and _CURRENCY.fullmatch(code := currency.strip().upper()):
        return code
    raise ConfigurationError(
        f"currency must be a code of three letters, such as EUR, not {currency!r}."
    )


def _check(model: str, price: TokenPrices | ImagePrices) -> None:
    values = (
        [price.text_input, price.image_input, price.image_output, price.text_output or 0]
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


_PRICED = ("model", "n", "size", "quality", "output_format", "svg")
"""The fields of a request that its cost depends on."""


def _is_svg(request: ImageRequest) -> bool:
    return request.svg is not None or request.output_format == "svg"


def _as_sent(request: ImageRequest) -> ImageRequest | None:
    """Return a request with the fields of its `extra_body`; None if it cannot be priced."""
    body = request.extra_body or {}
    own = {name: body[name] for name in _PRICED if name in body}
    if type(own.get("n", 1)) is not int or own.get("n", 1) < 1:
        return None
    texts = ("model", "size", "quality", "output_format")
    if not all(isinstance(own.get(name, ""), str) for name in texts):
        return None
    return replace(request, **own) if own else request


def _checked(cost: object) -> Decimal | None:
    """Check the value that a price function returned."""
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
