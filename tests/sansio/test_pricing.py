"""`elkimg_async.sansio.pricing`: costs according to prices and as reported."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.pricing import ImagePrices, Pricing, TokenPrices, cost_of, reported_cost
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.responses import TokenDetails, Usage

REQUEST = GenerateRequest(prompt="a boat", model="gpt-image-1.5", n=2)
TOKENS = TokenPrices(text_input="5", image_input="8", image_output="32")
USAGE = Usage(
    input_tokens=150,
    output_tokens=2000,
    input_tokens_details=TokenDetails(text_tokens=50, image_tokens=100),
)


def test_cost_of_tokens() -> None:
    """Text, image and output tokens each have their own price per million."""
    cost = Pricing({"gpt-image-1.5": TOKENS}).cost(REQUEST, USAGE, 2)
    assert cost == Decimal("0.06505")


def test_cost_of_tokens_without_details() -> None:
    """Input tokens that the server does not divide count as text."""
    usage = Usage(input_tokens=150, output_tokens=2000)
    assert TOKENS.cost(REQUEST, usage, 2) == Decimal("0.06475")


@pytest.mark.parametrize("usage", [None, Usage(), Usage(input_tokens=5), Usage(output_tokens=0)])
def test_cost_without_token_counts(usage: Usage | None) -> None:
    """Without counted tokens the cost is unknown, never zero."""
    assert TOKENS.cost(REQUEST, usage, 2) is None


def test_cost_of_an_unknown_model() -> None:
    """A model without a price has an unknown cost."""
    assert Pricing({"gpt-image-2": TOKENS}).cost(REQUEST, USAGE, 2) is None
    assert Pricing({"gpt-image-2": TOKENS}).worst_case(REQUEST) is None


def test_cost_of_the_default_model() -> None:
    """A request without a model costs what the default model costs."""
    request = GenerateRequest(prompt="a boat")
    assert Pricing({"gpt-image-1.5": TOKENS}).cost(request, USAGE, 1) is not None


@pytest.mark.parametrize(
    ("size", "quality", "cost"),
    [
        ("1024x1024", "hd", "0.16"),
        ("1024x1024", "standard", "0.08"),
        ("1024x1024", None, "0.08"),
        ("1792x1024", "hd", "0.24"),
        ("1792x1024", "standard", None),
    ],
)
def test_cost_per_image(size: str, quality: str | None, cost: str | None) -> None:
    """The price of an image is that of its size and quality, where None matches any."""
    prices = ImagePrices(
        {
            ("1024x1024", "hd"): "0.08",
            ("1024x1024", None): "0.04",
            (None, "hd"): "0.12",
        }
    )
    request = GenerateRequest(prompt="a boat", model="dall-e-3", size=size, quality=quality, n=2)
    expected = None if cost is None else Decimal(cost)
    assert prices.cost(request, None, 2) == expected
    assert Pricing({"dall-e-3": prices}).worst_case(request) == expected


def test_worst_case_of_tokens() -> None:
    """The worst case is the maximum of tokens per image, and the input at the higher price."""
    prices = TokenPrices(
        text_input="5",
        image_input="8",
        image_output="32",
        max_tokens_per_image=6240,
        max_input_tokens=1000,
    )
    assert prices.worst_case(REQUEST) == Decimal("0.40736")
    assert TOKENS.worst_case(REQUEST) is None


@pytest.mark.parametrize(("text_input", "worst"), [("5", None), (0, Decimal("0.064"))])
def test_worst_case_of_tokens_without_a_maximum_of_input(
    text_input: str | int, worst: Decimal | None
) -> None:
    """The maximum of input tokens must be known, unless input costs nothing."""
    prices = TokenPrices(text_input=text_input, image_output="32", max_tokens_per_image=1000)
    assert prices.worst_case(REQUEST) == worst
    assert prices.cost(REQUEST, Usage(output_tokens=2000), 2) == worst


def test_cost_of_an_svg_in_tokens() -> None:
    """The tokens of writing an SVG are counted apart, so its cost is unknown."""
    prices = TokenPrices(image_output="32", max_tokens_per_image=1000)
    request = GenerateRequest(prompt="a boat", svg={"model": "gpt-5"})
    assert prices.cost(request, USAGE, 1) is None
    assert prices.worst_case(request) is None


@pytest.mark.parametrize(
    ("body", "worst"),
    [
        ({"n": 3}, "3"),
        ({"quality": "hd"}, "4"),
        ({"model": "dall-e-2"}, "0.2"),
        ({"n": "3"}, None),
        ({"n": 0}, None),
        ({"size": ["1024x1024"]}, None),
        ({"seed": 7}, "2"),
    ],
)
def test_worst_case_with_an_extra_body(body: dict[str, Any], worst: str | None) -> None:
    """Fields of `extra_body` count, and the cost is unknown where they cannot be read."""
    pricing = Pricing(
        {
            "dall-e-3": ImagePrices({(None, None): 1, (None, "hd"): 2}),
            "dall-e-2": ImagePrices({(None, None): "0.1"}),
        }
    )
    request = GenerateRequest(prompt="a boat", model="dall-e-3", n=2, extra_body=body)
    assert pricing.worst_case(request) == (None if worst is None else Decimal(worst))


def test_cost_by_a_function() -> None:
    """A function prices what a table cannot."""

    def price(request: Any, usage: Usage | None) -> Decimal | None:
        return Decimal("0.5") * request.n if usage is None else Decimal("0.25")

    pricing = Pricing(price)
    assert pricing.worst_case(REQUEST) == 1
    assert pricing.cost(REQUEST, USAGE, 2) == Decimal("0.25")


@pytest.mark.parametrize("price", [-1, Decimal("nan"), "a lot", object(), True])
def test_cost_by_a_function_that_returns_no_price(price: Any) -> None:
    """What a function returns must be a price."""
    pricing = Pricing(lambda request, usage: price)
    with pytest.raises(ConfigurationError, match="price function"):
        pricing.worst_case(REQUEST)
    with pytest.raises(ConfigurationError, match="price function"):
        pricing.cost(REQUEST, USAGE, 1)


@pytest.mark.parametrize("maximum", [-1, 1.5, True, "1000"])
@pytest.mark.parametrize("name", ["max_tokens_per_image", "max_input_tokens"])
def test_maximum_that_is_no_number(name: str, maximum: Any) -> None:
    """A maximum must be a whole number."""
    with pytest.raises(ConfigurationError, match=name):
        Pricing({"gpt-image-1": TokenPrices(**{name: maximum})})


@pytest.mark.parametrize("price", ["a lot", "-1", "nan", True])
def test_price_invalid(price: Any) -> None:
    """An impossible price is rejected, naming the model."""
    with pytest.raises(ConfigurationError, match="gpt-image-1"):
        Pricing({"gpt-image-1": TokenPrices(text_input=price)})
    with pytest.raises(ConfigurationError, match="gpt-image-1"):
        Pricing({"gpt-image-1": ImagePrices({(None, None): price})})


def test_price_of_another_type() -> None:
    """What is neither kind of price is rejected."""
    for prices in ({"gpt-image-1": 5}, "gpt-image-1", [("gpt-image-1", 5)], None, 5):
        with pytest.raises(ConfigurationError, match="TokenPrices"):
            Pricing(prices)  # type: ignore[arg-type]


def test_reported_cost_without_a_report() -> None:
    """Without a cost from the server and a price list the cost is unknown."""
    assert reported_cost(USAGE) is None
    assert cost_of(None, REQUEST, USAGE, 2) is None
    assert cost_of(Pricing({"gpt-image-1.5": TOKENS}), REQUEST, USAGE, 2) == (
        *(Decimal("0.06505"), "USD"),
    )


@pytest.mark.parametrize(
    ("extra", "cost"),
    [
        ({"cost": 0.04}, "0.04"),
        ({"cost": "0.04", "cost_in_usd_ticks": 1}, "0.04"),
        ({"cost_in_usd_ticks": 700_000_000}, "0.07"),
        ({"cost": 0}, "0"),
        ({"cost": -1}, "0.06505"),
        ({"cost": {"total": 1}}, "1"),
    ],
)
def test_reported_cost_wins(extra: dict[str, Any], cost: str) -> None:
    """The cost that the server reports wins over the price list, unless it is not an amount."""
    usage = msgspec.structs.replace(USAGE, extra=extra)
    found = cost_of(Pricing({"gpt-image-1.5": TOKENS}), REQUEST, usage, 2)
    assert found == (Decimal(cost), "USD")


@pytest.mark.parametrize(
    ("input_details", "cost"),
    [
        (TokenDetails(text_tokens=10, image_tokens=90), "0.00077"),
        (TokenDetails(image_tokens=90), "0.00077"),
        (TokenDetails(text_tokens=10), "0.00077"),
        (TokenDetails(), None),
        (None, None),
    ],
)
def test_cost_of_an_edit(input_details: TokenDetails | None, cost: str | None) -> None:
    """The cost of an edit is unknown without the ratio of its text and image input."""
    prices = TokenPrices(text_input=5, image_input=8)
    usage = Usage(input_tokens=100, output_tokens=1, input_tokens_details=input_details)
    found = prices.cost(EditRequest(image=b"", prompt="a"), usage, 1)
    assert found == (None if cost is None else Decimal(cost))


def test_cost_of_text_output() -> None:
    """Output tokens that are reported as text have their own price, or that of images."""
    details = TokenDetails(text_tokens=200, image_tokens=800)
    usage = Usage(output_tokens=1000, output_tokens_details=details)
    assert TokenPrices(image_output=32).cost(REQUEST, usage, 1) == Decimal("0.032")
    prices = TokenPrices(image_output=32, text_output=10, max_tokens_per_image=1000)
    assert prices.cost(REQUEST, usage, 1) == Decimal("0.0276")
    request = GenerateRequest(prompt="a")
    assert prices.worst_case(request) == Decimal("0.032")
    for request in (
        GenerateRequest(prompt="a", output_format="svg"),
        GenerateRequest(prompt="a", extra_body={"output_format": "svg"}),
    ):
        assert Pricing({"gpt-image-1.5": prices}).cost(request, usage, 1) is None
