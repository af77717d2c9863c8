"""What the calls of a client take, for type checkers."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from elkimg_async.config import RetryPolicy, Timeout
from elkimg_async.image import ImageInput
from elkimg_async.sansio.requests import EditRequest, GenerateRequest

Prompt: TypeAlias = str | GenerateRequest | Mapping[str, Any]
MapRequest: TypeAlias = str | GenerateRequest | EditRequest | Mapping[str, Any]
Images: TypeAlias = ImageInput | Sequence[ImageInput]


class ImageOptions(TypedDict, total=False):
    """The options that `AsyncImages.generate` and `edit` share; the docstring of `generate` says what they mean."""

    model: str | None
    n: int | None
    size: str | None
    quality: str | None
    background: str | None
    user: str | None
    output_format: str | None
    output_compression: int | None
    partial_images: int | None
    response_format: str | None
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    timeout: Timeout | float | None
    retry: RetryPolicy | int | None


class GenerateOptions(ImageOptions, total=False):
    """The options of `AsyncImages.generate`."""

    moderation: str | None
    style: str | None


class EditOptions(ImageOptions, total=False):
    """The options of `AsyncImages.edit`."""

    mask: ImageInput | None
    input_fidelity: str | None


class MapOptions(GenerateOptions, EditOptions, total=False):
    """The options of `AsyncImages.map` that are those of single calls."""
