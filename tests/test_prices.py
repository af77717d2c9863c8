"""Token prices from `genai-prices`."""

import sys
from decimal import Decimal

import pytest

from elkimg_async import AsyncImages, ConfigurationError, Pricing
from elkimg_async.local import LocalServer
from elkimg_async.prices import token_prices


def test_token_prices_without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error names it."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[prices\]"):
        token_prices("gpt-image-1.5")


def test_token_prices_of_image_models() -> None:
    """Text and image tokens have the listed prices, and where one is missing, that of the other."""
    pytest.importorskip("genai_prices")
    for model in ("gpt-image-1", "gpt-image-1.5", "gpt-image-1-mini"):
        prices = token_prices(model, max_tokens_per_image=7_000)
        assert 0 < Decimal(prices.text_input) <= Decimal(prices.image_input)
        assert Decimal(prices.image_output) > Decimal(prices.image_input)
        assert prices.max_tokens_per_image == 7_000
    google = token_prices("gemini-2.5-flash-image", provider="google")
    assert google.image_input == google.text_input
    assert google.text_output is not None
    assert Decimal(google.image_output) > Decimal(google.text_output)


@pytest.mark.parametrize(
    ("model", "provider"), [("no-such-image", "openai"), ("gpt-image-1.5", "nobody")]
)
def test_token_prices_of_unknown_model(model: str, provider: str) -> None:
    """A model or provider that is not listed is an error that names both, never a price of 0."""
    pytest.importorskip("genai_prices")
    with pytest.raises(ConfigurationError, match=f"{model} of {provider}"):
        token_prices(model, provider)


async def test_token_prices_of_client() -> None:
    """The prices work as those of a client."""
    pytest.importorskip("genai_prices")
    prices = token_prices("gpt-image-1.5")
    async with (
        LocalServer(light=True, delay=0) as server,
        AsyncImages(
            server.api_key, base_url=server.base_url, pricing=Pricing({"gpt-image-1.5": prices})
        ) as client,
    ):
        result = await client.generate("A kitten", size="1024x1024", quality="low")
    assert result.usage is not None
    assert result.usage.output_tokens is not None
    assert result.meta.cost is not None
    output = Decimal(prices.image_output) * Decimal(result.usage.output_tokens) / 1_000_000
    assert output <= result.meta.cost < output * 2
