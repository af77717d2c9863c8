"""The TOML file of `--price-file`, with one table per model, and the currency before them.

currency = "EUR"             # USD without this line

["gpt-image-1.5"]            # per million tokens
text_input = 5.00
image_input = 8.00
image_output = 32.00
max_tokens_per_image = 6500  # both for --max-cost
max_input_tokens = 20000

[dall-e-3]                   # per image; a missing size or quality means any
images = [
    {price = 0.04},
    {size = "1024x1024", quality = "hd", price = 0.08},
]
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async import ImagePrices, Pricing, TokenPrices, errors
from elkimg_async.cli.console import UsageError, sentence
from elkimg_async.sansio.pricing import USD


class _ImagePrice(msgspec.Struct, forbid_unknown_fields=True):
    price: Decimal
    size: str | None = None
    quality: str | None = None


class _ModelPrices(msgspec.Struct, forbid_unknown_fields=True):
    """The table of a model, which has either `images` or the fields of `TokenPrices`."""

    images: list[_ImagePrice] | None = None
    text_input: Decimal | None = None
    image_input: Decimal | None = None
    image_output: Decimal | None = None
    text_output: Decimal | None = None
    max_tokens_per_image: int | None = None
    max_input_tokens: int | None = None

    def prices(self) -> TokenPrices | ImagePrices:
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        images = fields.pop("images")
        tokens = {name: value for name, value in fields.items() if value is not None}
        if images is None and "image_output" in tokens:
            return TokenPrices(**tokens)
        if images and not tokens:
            return ImagePrices({(one.size, one.quality): one.price for one in images})
        raise UsageError("a model requires image_output (per million tokens) or images")


def read_prices(path: Path) -> Pricing:
    """Read a file of prices.

    Raises:
        UsageError: If the file cannot be read or is invalid.
    """
    try:
        models = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
        currency = models.pop("currency", USD)
        tables = msgspec.convert(models, dict[str, _ModelPrices], strict=True)
        prices = {model: table.prices() for model, table in tables.items()}
        return Pricing(prices, currency=currency)
    except OSError as error:
        problem = error.strerror or str(error)
    except (ValueError, msgspec.MsgspecError, UsageError) as error:
        problem = str(error)
    except errors.ConfigurationError as error:
        problem = sentence(error)
    raise UsageError(f"The prices in {path} cannot be read: {problem.rstrip('.')}.")
