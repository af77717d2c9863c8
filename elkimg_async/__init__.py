"""An asyncio-first client for ElkAPI's image API and every OpenAI-compatible one.

Importing the package costs next to nothing: the errors are here, and every other public name is
loaded on first access (PEP 562).
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elkimg_async import errors
from elkimg_async.errors import *  # noqa: F403

if TYPE_CHECKING:
    from elkimg_async.batch.run import MapItem, MapRun, Totals
    from elkimg_async.client import AsyncImages
    from elkimg_async.config import Limits, RetryPolicy, Timeout
    from elkimg_async.image import Image, ImageInput
    from elkimg_async.sansio.image_headers import ImageReference
    from elkimg_async.sansio.models import Model, Models
    from elkimg_async.sansio.pricing import ImagePrices, Pricing, TokenPrices
    from elkimg_async.sansio.requests import EditRequest, GenerateRequest
    from elkimg_async.sansio.responses import (
        CompletedImage,
        ImagesResponse,
        Meta,
        PartialImage,
        RateLimit,
        TokenDetails,
        Usage,
    )
    from elkimg_async.stream import ImageStream

__version__ = "0.1.0"

__all__ = [
    "AsyncImages",
    "CompletedImage",
    "EditRequest",
    "GenerateRequest",
    "Image",
    "ImageInput",
    "ImagePrices",
    "ImageReference",
    "ImageStream",
    "ImagesResponse",
    "Limits",
    "MapItem",
    "MapRun",
    "Meta",
    "Model",
    "Models",
    "PartialImage",
    "Pricing",
    "RateLimit",
    "RetryPolicy",
    "Timeout",
    "TokenDetails",
    "TokenPrices",
    "Totals",
    "Usage",
    "__version__",
]
__all__ += errors.__all__

_NAMES = {
    "batch.run": ("MapItem", "MapRun", "Totals"),
    "client": ("AsyncImages",),
    "config": ("Limits", "RetryPolicy", "Timeout"),
    "image": ("Image", "ImageInput"),
    "sansio.image_headers": ("ImageReference",),
    "sansio.models": ("Model", "Models"),
    "sansio.pricing": ("ImagePrices", "Pricing", "TokenPrices"),
    "sansio.requests": ("EditRequest", "GenerateRequest"),
    "sansio.responses": (
        *("CompletedImage", "ImagesResponse", "Meta", "PartialImage"),
        *("RateLimit", "TokenDetails", "Usage"),
    ),
    "stream": ("ImageStream",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_OTHER_ERRORS = {
    "OpenAIError": "ElkImagesError",
    "APIStatusError": "APIError",
    "APIConnectionError": "NetworkError",
    "APITimeoutError": "RequestTimeoutError",
    "APIResponseValidationError": "ResponseError",
    "InternalServerError": "ServerError",
    **dict.fromkeys(("ConflictError", "UnprocessableEntityError"), "BadRequestError"),
}
"""The errors of openai, and what they are called here."""
_OTHER_CLIENTS = re.compile(r"(Async)?(\w*Client|OpenAI|Elk(?!\w*Error)\w*|Images?|ImageClient)")


def __getattr__(name: str) -> Any:
    if (module := _MODULES.get(name)) is None:
        advice = None
        if name in _OTHER_ERRORS:
            advice = f"the error is called {_OTHER_ERRORS[name]}."
        elif name in ("NOT_GIVEN", "NotGiven", "Omit", "omit"):
            advice = "pass None, or leave the argument out."
        elif _OTHER_CLIENTS.fullmatch(name):
            advice = "the client is called AsyncImages, and there is none without async."
        if advice is not None:
            # An AttributeError would be replaced by Python's own text in `from … import …`.
            raise ImportError(
                f"cannot import name {name!r} from {__name__!r}: {advice}", name=__name__
            )
        text = f"module {__name__!r} has no attribute {name!r}"
        if name in ("edit", "generate", "map", "models"):
            text += f": it is a method of a client, AsyncImages().{name}(…)"
        raise AttributeError(text, name=name)
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
