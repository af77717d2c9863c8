"""Token prices from `genai-prices`, a list of prices that is maintained by others.

    from elkimg_async import AsyncImages, Pricing
    from elkimg_async.prices import token_prices

    client = AsyncImages(pricing=Pricing({"gpt-image-1.5": token_prices("gpt-image-1.5")}))

Its prices are those of the installed version; they can be out of date, and a provider may charge
others. Needs the extra `prices`.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.pricing import TokenPrices

__all__ = ["token_prices"]


def token_prices(
    model: str,
    provider: str = "openai",
    *,
    max_tokens_per_image: int | None = None,
    max_input_tokens: int | None = None,
) -> TokenPrices:
    """Return today's prices of a model in US dollars, as `genai-prices` lists them.

    Args:
        model: The name of the model, such as `gpt-image-1.5`.
        provider: The provider's name in `genai-prices`, such as `openai`, `azure` or `google`.
        max_tokens_per_image: As in `TokenPrices`; the list has no maxima, and `max_cost` needs one.
        max_input_tokens: As in `TokenPrices`.

    Raises:
        ConfigurationError: If `genai-prices` is not installed, does not list the model, or lists no
            plain price per token for its input and output.
    """
    listed = _find(model, provider)
    text_input, image_input = _price(listed, "input_mtok"), _price(listed, "input_image_mtok")
    output, image_output = _price(listed, "output_mtok"), _price(listed, "output_image_mtok")
    if text_input is None or (output is None and image_output is None):
        raise ConfigurationError(
            f"genai-prices lists no plain price per token for {model} of {provider}. Pass the "
            "prices yourself: TokenPrices(text_input=…, image_input=…, image_output=…)."
        )
    return TokenPrices(
        text_input=text_input,
        image_input=text_input if image_input is None else image_input,
        # Without a price of its own, an image token costs as much as any other output token.
        image_output=output if image_output is None else image_output,  # type: ignore[arg-type]
        text_output=output,
        max_tokens_per_image=max_tokens_per_image,
        max_input_tokens=max_input_tokens,
    )


def _find(model: str, provider: str) -> Any:
    """Return the `ModelPrice` of a model."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        raise ConfigurationError(
            'genai-prices is not installed: pip install "elkimg-async[prices]"'
        ) from None
    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        raise ConfigurationError(
            f"genai-prices does not list {model} of {provider}. Check both names, update "
            "genai-prices, or pass TokenPrices(…) yourself."
        ) from None
    return found.get_prices(datetime.datetime.now(datetime.UTC))


def _price(listed: Any, name: str) -> Decimal | None:
    """Return a price per million tokens; None if there is none, or it depends on the length."""
    price = getattr(listed, name, None)
    return price if isinstance(price, Decimal) else None
