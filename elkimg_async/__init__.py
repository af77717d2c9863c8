"""An asyncio-first client for ElkAPI's image API and every OpenAI-compatible one."""

from elkimg_async import errors
from elkimg_async.batch.run import MapItem, MapRun, Totals
from elkimg_async.client import AsyncImages
from elkimg_async.config import Limits, RetryPolicy, Timeout
from elkimg_async.errors import *  # noqa: F403
from elkimg_async.image import Image, ImageInput
from elkimg_async.sansio.image_headers import ImageReference
from elkimg_async.sansio.models import Model, Models
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
    "RateLimit",
    "RetryPolicy",
    "Timeout",
    "TokenDetails",
    "Totals",
    "Usage",
    "__version__",
]
__all__ += errors.__all__
