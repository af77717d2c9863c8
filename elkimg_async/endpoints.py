"""What a call can ask of a server: one class for each endpoint, from arguments to decoder."""

import hashlib
import os
from collections.abc import Mapping, Sized
from typing import Any, Protocol, TypeVar

from elkimg_async.errors import ElkImagesError
from elkimg_async.sansio import encode
from elkimg_async.sansio.decoder import ImagesDecoder, ImageEvent, SkippedEvent
from elkimg_async.sansio.models import ModelsDecoder, Models
from elkimg_async.sansio.requests import (
    EditRequest,
    GenerateRequest,
    ImageRequest,
    make_edit,
    make_request,
)
from elkimg_async.sansio.responses import ImagesResponse, Meta
from elkimg_async.transport.uploads import look_at, look_at_all


class Answer(Protocol):
    """What every call gives in the end."""

    meta: Meta


AnswerT = TypeVar("AnswerT", bound=Answer)
AnswerT_co = TypeVar("AnswerT_co", bound=Answer, covariant=True)


class Decoder(Protocol[AnswerT_co]):
    """One body, fed in any split; `ImagesDecoder` says what its parts are for."""

    @property
    def events(self) -> Sized: ...
    @property
    def failure(self) -> ElkImagesError | None: ...
    @property
    def done(self) -> bool: ...
    def feed(self, chunk: bytes) -> bool: ...
    def finish(self) -> None: ...
    def next_event(self) -> ImageEvent | SkippedEvent | None: ...
    def response(self) -> AnswerT_co: ...
    def attach_images(self, error: ElkImagesError) -> None: ...


class Endpoint(Protocol[AnswerT_co]):
    """One endpoint with the arguments of one call.

    `paid` is whether asking twice may cost twice.
    """

    @property
    def paid(self) -> bool: ...

    async def request(self) -> ImageRequest | None:
        """The arguments as a request to be checked; None where there is nothing to check."""

    def write(self, request: Any, *, stream: bool, key: str | None) -> encode.HTTPRequest:
        """The request as HTTP; `key` is the idempotency key, or None for none."""
        ...

    def decoder(self, *, stream: bool, max_bytes: int, length: int) -> Decoder[AnswerT_co]:
        """What reads the answer; `length` is how many bytes it says it has, 0 where it does not say."""
        ...


class Generate:
    """`POST /images/generations`."""

    paid = True

    def __init__(
        self, prompt: str | GenerateRequest | Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        self._prompt, self._options = prompt, options

    async def request(self) -> GenerateRequest:
        return make_request(self._prompt, self._options)

    def write(
        self, request: GenerateRequest, *, stream: bool, key: str | None
    ) -> encode.HTTPRequest:
        return encode.generate(request, stream=stream, key=key)

    def decoder(self, *, stream: bool, max_bytes: int, length: int) -> Decoder[ImagesResponse]:
        return ImagesDecoder(stream=stream, max_bytes=max_bytes, length=length)


class Edit:
    """`POST /images/edits`."""

    paid = True

    def __init__(self, image: Any, mask: Any, prompt: str, options: Mapping[str, Any]) -> None:
        self._image, self._mask, self._prompt, self._options = image, mask, prompt, options

    async def request(self) -> EditRequest:
        images = await look_at_all(self._image, "image")
        mask = None if self._mask is None else await look_at(self._mask, "mask")
        return make_edit(images, mask, self._prompt, self._options)

    def write(self, request: EditRequest, *, stream: bool, key: str | None) -> encode.HTTPRequest:
        # The same for the same key, so that a server which replays sees the same body.
        seed = os.urandom(16) if key is None else key.encode("utf-8", "surrogatepass")
        boundary = "elkimg-" + hashlib.sha256(seed).hexdigest()[:32]
        return encode.edit(request, stream=stream, boundary=boundary, key=key)

    def decoder(self, *, stream: bool, max_bytes: int, length: int) -> Decoder[ImagesResponse]:
        return ImagesDecoder(stream=stream, max_bytes=max_bytes, length=length)


class ListModels:
    """`GET /models`."""

    paid = False

    async def request(self) -> None:
        return None

    def write(self, request: None, *, stream: bool, key: str | None) -> encode.HTTPRequest:
        return encode.models()

    def decoder(self, *, stream: bool, max_bytes: int, length: int) -> Decoder[Models]:
        return ModelsDecoder(max_bytes=max_bytes)
