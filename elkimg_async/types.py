"""The arguments of a client's calls, for editors and type checkers."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import IO, Any, Protocol, Required, TypeAlias, TypedDict

from elkimg_async.config import RetryPolicy, Timeout
from elkimg_async.image import Image
from elkimg_async.sansio.image_headers import ImageReference
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.values import (
    Background,
    Complexity,
    Effort,
    InputFidelity,
    ModelName,
    Moderation,
    OutputFormat,
    Quality,
    ResponseFormat,
    Size,
    Style,
    Svg,
    SvgReasoning,
)


class HttpxTimeout(Protocol):
    """A `Timeout` of httpx or openai."""

    @property
    def connect(self) -> float | None: ...
    @property
    def read(self) -> float | None: ...
    @property
    def write(self) -> float | None: ...
    @property
    def pool(self) -> float | None: ...


FileContent: TypeAlias = bytes | bytearray | memoryview | IO[bytes] | os.PathLike[str]
FileTuple: TypeAlias = (
    tuple[str | None, FileContent]
    | tuple[str | None, FileContent, str | None]
    | tuple[str | None, FileContent, str | None, Mapping[str, str]]
)
InputFile: TypeAlias = str | FileContent | FileTuple | Image | ImageReference
"""One image to send: a path, an http(s) or `data:` URL, bytes, a binary file, an `Image`, an
`ImageReference`, or openai's (name, content[, type[, headers]])."""
Images: TypeAlias = InputFile | Sequence[InputFile]
TimeoutLike: TypeAlias = Timeout | float | timedelta | HttpxTimeout
RetryLike: TypeAlias = RetryPolicy | int


class CallOptions(TypedDict, total=False):
    """The options of every call."""

    extra_headers: Mapping[str, str] | None
    extra_query: Mapping[str, Any] | None
    timeout: TimeoutLike | None
    retry: RetryLike | None


class RequestFields(TypedDict, total=False):
    """The fields that all requests share, except the prompt."""

    model: ModelName | None
    n: int | None
    size: Size | None
    quality: Quality | None
    background: Background | None
    moderation: Moderation | None
    style: Style | None
    user: str | None
    safety_identifier: str | None
    output_format: OutputFormat | None
    output_compression: int | None
    partial_images: int | None
    response_format: ResponseFormat | None
    complexity: Complexity | None
    frame_count: int | None
    frame_duration_ms: int | None
    svg: Svg | None
    extra_body: Mapping[str, Any] | None


class EditOnlyFields(TypedDict, total=False):
    """The fields that only edits have, except the image."""

    mask: InputFile | None
    markup: InputFile | None
    input_fidelity: InputFidelity | None


class GenerateOptions(CallOptions, RequestFields, total=False):
    """The options of `AsyncImages.generate`, whose docstring describes them."""


class EditOptions(GenerateOptions, EditOnlyFields, total=False):
    """The options of `AsyncImages.edit`, whose docstring describes them."""


class MapOptions(EditOptions, total=False):
    """The options of `AsyncImages.map` that are those of single calls."""


class GenerateFields(RequestFields, total=False):
    """A mapping for `AsyncImages.generate`."""

    prompt: Required[str]


class EditFields(RequestFields, EditOnlyFields, total=False):
    """A mapping for `AsyncImages.edit`."""

    image: Required[Images]
    prompt: str


class MapFields(RequestFields, EditOnlyFields, total=False):
    """A mapping for `AsyncImages.map`; with `image` it is an edit."""

    prompt: Required[str]
    image: Images | None
    id: str | int | None
    custom_id: str | int | None
    metadata: Mapping[str, Any] | None


# Editors complete the keys and values of a literal by the first; any other mapping is the second.
Prompt: TypeAlias = str | GenerateRequest | GenerateFields | Mapping[str, Any]
MapRequest: TypeAlias = str | GenerateRequest | EditRequest | MapFields | Mapping[str, Any]
EditMapping: TypeAlias = EditFields | Mapping[str, Any]

__all__ = [
    "Background",
    "CallOptions",
    "Complexity",
    "EditFields",
    "EditMapping",
    "EditOptions",
    "EditRequest",
    "Effort",
    "FileContent",
    "FileTuple",
    "GenerateFields",
    "GenerateOptions",
    "HttpxTimeout",
    "Images",
    "InputFidelity",
    "InputFile",
    "MapFields",
    "MapOptions",
    "MapRequest",
    "ModelName",
    "Moderation",
    "OutputFormat",
    "Prompt",
    "Quality",
    "ResponseFormat",
    "RetryLike",
    "Size",
    "Style",
    "Svg",
    "SvgReasoning",
    "TimeoutLike",
]
