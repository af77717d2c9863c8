"""The endpoints of the API: how each encodes its request and decodes its response."""

from collections.abc import Callable, Sized
from typing import Generic, Protocol, TypeVar

import msgspec

from elkimg_async.errors import ElkImagesError
from elkimg_async.sansio import encode
from elkimg_async.sansio.decoder import ImageEvent, ImagesDecoder, SkippedEvent
from elkimg_async.sansio.models import Models, ModelsDecoder
from elkimg_async.sansio.responses import ImagesResponse, Meta


class Result(Protocol):
    """The result of a call."""

    meta: Meta


ResultT = TypeVar("ResultT", bound=Result)
ResultT_co = TypeVar("ResultT_co", bound=Result, covariant=True)


class Decoder(Protocol[ResultT_co]):
    """The decoder of one response body, fed with chunks of any size."""

    @property
    def events(self) -> Sized: ...
    @property
    def failure(self) -> ElkImagesError | None: ...
    @property
    def done(self) -> bool: ...
    def feed(self, chunk: bytes) -> bool: ...
    def finish(self) -> None: ...
    def next_event(self) -> ImageEvent | SkippedEvent | None: ...
    def attach_images(self, error: ElkImagesError) -> None: ...
    def response(self) -> ResultT_co: ...


class Endpoint(msgspec.Struct, Generic[ResultT], frozen=True, kw_only=True):
    """One endpoint of the API.

    `creates_images` is whether a repeated request can cost twice. `encode` takes a request,
    `stream`, `idempotency_key` and `boundary` (text that separates the parts of a form), and
    returns an `HTTPRequest`. `decoder` takes `stream`, `max_bytes`, `length` and `content_type`,
    and returns a `Decoder`.
    """

    creates_images: bool
    encode: Callable[..., encode.HTTPRequest]
    decoder: Callable[..., Decoder[ResultT]]


GENERATE: Endpoint[ImagesResponse] = Endpoint(
    creates_images=True, encode=encode.generate, decoder=ImagesDecoder
)
EDIT: Endpoint[ImagesResponse] = Endpoint(
    creates_images=True, encode=encode.edit, decoder=ImagesDecoder
)
MODELS: Endpoint[Models] = Endpoint(
    creates_images=False, encode=encode.models, decoder=ModelsDecoder
)
