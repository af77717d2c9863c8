"""What a server may say: tolerant of what is missing, null, misspelt or new.

Only the type of an event and the image in it can be counted on. Side data that
is not what it should be becomes None; it never costs an image.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias, overload

import msgspec

from elkimg_async.image import Image
from elkimg_async.sansio.json_images import (
    SPLICED,
    BadBase64,
    Document,
    JSONDecoder,
    SplicedDocument,
)

Number: TypeAlias = int | float

PARTIAL_TYPES = ("image_generation.partial_image", "image_edit.partial_image")
COMPLETED_TYPES = ("image_generation.completed", "image_edit.completed")


class TokenDetails(msgspec.Struct, frozen=True, kw_only=True):
    """How a number of tokens divides; None where the server does not say."""

    text_tokens: Number | None = None
    image_tokens: Number | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that were counted; None where the server does not say."""

    total_tokens: Number | None = None
    input_tokens: Number | None = None
    output_tokens: Number | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The `x-ratelimit-*` headers of an answer; `reset_*` are seconds; None where a header is missing."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the exchange behind a result.

    `elapsed` is in seconds for the whole call, `first_byte` in seconds from the last
    attempt's beginning to its headers. `rate_limit` and `idempotency_key` are None where
    the server told none and none was sent.
    """

    request_id: str | None
    status: int
    attempts: int
    elapsed: float
    first_byte: float
    rate_limit: RateLimit | None
    idempotency_key: str | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What partial and completed images have in common; fields but the first two may be None."""

    type: str
    image: Image
    created_at: Number | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None

    @property
    def b64_json(self) -> str | None:
        """The image in base64, encoded anew at each use; None while it is only a URL."""
        return self.image.b64_json


class PartialImage(Event, frozen=True, kw_only=True):
    """An image on its way. `partial_image_index` counts from 0; None when the server does not count."""

    partial_image_index: int | None = None


class CompletedImage(Event, frozen=True, kw_only=True):
    """A finished image. With several, each repeats the `usage` of the whole call: never add them up."""

    usage: Usage | None = None


class ImagesResponse(Sequence[Image]):
    """The images of one call, as a sequence and as `data`.

    The other attributes are None where the server does not say; `created` is in
    seconds since 1970.
    """

    meta: Meta

    def __init__(
        self,
        data: Iterable[Image],
        *,
        created: Number | None = None,
        usage: Usage | None = None,
        size: str | None = None,
        quality: str | None = None,
        background: str | None = None,
        output_format: str | None = None,
    ) -> None:
        self.data = list(data)
        self.created = created
        self.usage = usage
        self.size = size
        self.quality = quality
        self.background = background
        self.output_format = output_format

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.data)

    def __repr__(self) -> str:
        return f"<ImagesResponse {self.data!r}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from elkimg_async.notebook import grid

        return {"text/plain": repr(self), "text/html": grid(self.data)}


Slot: TypeAlias = Image | BadBase64 | None
"""A place for an image: filled, filled with something broken, or empty."""


def read_slot(item: Any, document: Document) -> Slot:
    """The image of one object with `b64_json` and `url`."""
    if not isinstance(item, dict):
        return None
    url = read_str(item.get("url"))
    decoded = document.image(item.get("b64_json"))
    if url is not None and document.is_image(url):
        decoded, url = document.image(url) if not isinstance(decoded, bytes) else decoded, None
    if isinstance(decoded, bytes) or url is not None:
        content = decoded if isinstance(decoded, bytes) else None
        return Image(content, url=url, revised_prompt=read_str(item.get("revised_prompt")))
    return decoded


def read_slots(value: dict[str, Any], document: Document) -> list[Slot]:
    """The images of an answer: those of `data`, or the one that stands in the answer itself."""
    data = value.get("data")
    if data is None and ("b64_json" in value or "url" in value):
        data = value
    return [read_slot(item, document) for item in (data if isinstance(data, list) else [data])]


def read_partial(type: str, image: Image, value: dict[str, Any]) -> PartialImage:
    """The event around an image on its way."""
    get = value.get
    index = read_number(get("partial_image_index"))
    return PartialImage(
        type=type,
        image=image,
        created_at=_read_created(value),
        size=read_str(get("size")),
        quality=read_str(get("quality")),
        background=read_str(get("background")),
        output_format=read_str(get("output_format")),
        partial_image_index=None if index is None else int(index),
    )


# Most answers are as the API describes them: what follows reads those alone, several times as fast.

_Said = Annotated[str, msgspec.Meta(min_length=1)]


class _PlainPartial(msgspec.Struct):
    b64_json: str
    type: str | None = None
    url: None = None
    error: None = None
    created: None = None
    revised_prompt: _Said | None = None
    created_at: int | None = None
    size: _Said | None = None
    quality: _Said | None = None
    background: _Said | None = None
    output_format: _Said | None = None
    partial_image_index: int | None = None


class _PlainItem(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: _Said | None = None


class _PlainAnswer(msgspec.Struct):
    data: list[_PlainItem]
    type: None = None
    error: None = None
    created: int | None = None
    usage: dict[str, Any] | None = None
    size: _Said | None = None
    quality: _Said | None = None
    background: _Said | None = None
    output_format: _Said | None = None


_plain_partials = msgspec.json.Decoder(_PlainPartial)
_plain_answers = msgspec.json.Decoder(_PlainAnswer)


def read_plain_partial(name: str, document: SplicedDocument) -> PartialImage | None:
    """What `read_partial` gives; None for all that needs a closer look.

    `name` is that of the `event:` line.
    """
    plain = document.finish_as(_plain_partials)
    if plain is None or plain.b64_json != SPLICED or not document.image:
        return None
    stated = plain.type or name
    if stated not in PARTIAL_TYPES:
        return None
    return PartialImage(
        type=stated,
        image=Image(document.image, revised_prompt=plain.revised_prompt),
        created_at=plain.created_at,
        size=plain.size,
        quality=plain.quality,
        background=plain.background,
        output_format=plain.output_format,
        partial_image_index=plain.partial_image_index,
    )


def read_plain_answer(decoder: JSONDecoder) -> ImagesResponse | None:
    """The answer of a batch call; None for all that needs a closer look."""
    found = decoder.finish_as(_plain_answers)
    if found is None:
        return None
    plain, decoded = found
    images = []
    for item in plain.data:
        content = decoded.get(item.b64_json or "")
        if isinstance(content, bytes) and content and not item.url:
            images.append(Image(content, revised_prompt=item.revised_prompt))
        elif item.b64_json or not (item.url and item.url.startswith(("https://", "http://"))):
            return None
        else:
            images.append(Image(url=item.url, revised_prompt=item.revised_prompt))
    if not images:
        return None
    return ImagesResponse(
        images,
        created=plain.created,
        usage=read_usage(plain.usage),
        size=plain.size,
        quality=plain.quality,
        background=plain.background,
        output_format=plain.output_format,
    )


def read_completed(type: str, image: Image, value: dict[str, Any]) -> CompletedImage:
    """The event around a finished image."""
    return CompletedImage(
        type=type,
        image=image,
        created_at=_read_created(value),
        usage=read_usage(value.get("usage")),
        **read_side_data(value),
    )


def _read_created(value: dict[str, Any]) -> Number | None:
    return read_number(_either(value, "created_at", "created"))


def read_side_data(value: dict[str, Any]) -> dict[str, str | None]:
    """What may stand beside the images."""
    get = value.get
    return {
        "size": read_str(get("size")),
        "quality": read_str(get("quality")),
        "background": read_str(get("background")),
        "output_format": read_str(get("output_format")),
    }


def read_usage(value: Any) -> Usage | None:
    """The usage in its own or in chat spelling."""
    if not isinstance(value, dict):
        return None
    return Usage(
        total_tokens=read_number(value.get("total_tokens")),
        input_tokens=read_number(_either(value, "input_tokens", "prompt_tokens")),
        output_tokens=read_number(_either(value, "output_tokens", "completion_tokens")),
        input_tokens_details=_read_details(
            _either(value, "input_tokens_details", "prompt_tokens_details")
        ),
        output_tokens_details=_read_details(
            _either(value, "output_tokens_details", "completion_tokens_details")
        ),
    )


def add_usage(one: Usage | None, other: Usage | None) -> Usage | None:
    """Both together; None counts as nothing."""
    if one is None or other is None:
        return one or other
    return Usage(
        total_tokens=_add(one.total_tokens, other.total_tokens),
        input_tokens=_add(one.input_tokens, other.input_tokens),
        output_tokens=_add(one.output_tokens, other.output_tokens),
        input_tokens_details=_add_details(one.input_tokens_details, other.input_tokens_details),
        output_tokens_details=_add_details(one.output_tokens_details, other.output_tokens_details),
    )


def _add(one: Number | None, other: Number | None) -> Number | None:
    return other if one is None else one if other is None else one + other


def _add_details(one: TokenDetails | None, other: TokenDetails | None) -> TokenDetails | None:
    if one is None or other is None:
        return one or other
    return TokenDetails(
        text_tokens=_add(one.text_tokens, other.text_tokens),
        image_tokens=_add(one.image_tokens, other.image_tokens),
    )


def _either(value: dict[str, Any], name: str, other: str) -> Any:
    found = value.get(name)
    return value.get(other) if found is None else found


def _read_details(value: Any) -> TokenDetails | None:
    if not isinstance(value, dict):
        return None
    return TokenDetails(
        text_tokens=read_number(value.get("text_tokens")),
        image_tokens=read_number(value.get("image_tokens")),
    )


def read_str(value: Any) -> str | None:
    """A string that says something and is valid Unicode, or None."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def read_number(value: Any) -> Number | None:
    """A finite number, an integer where it is whole; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return int(value) if value.is_integer() else value
    return value
