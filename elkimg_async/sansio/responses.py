"""Responses of a server: images, events, usage.

Only the type and the image of an event are always present: every other field is None if the server
omits it or sends something else. Fields without an attribute here are in `extra`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import msgspec

from elkimg_async.hints import missing_attribute
from elkimg_async.image import Image
from elkimg_async.plain import to_plain

Number: TypeAlias = int | float

PARTIAL_TYPES = ("image_generation.partial_image", "image_edit.partial_image")
COMPLETED_TYPES = ("image_generation.completed", "image_edit.completed")


class ResponseData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base class of data returned by a server."""

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data as in JSON, without fields that are None.

        `images=False` omits the base64 content.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "extra"}
        return {**getattr(self, "extra", {}), **_plain(fields, images)}

    model_dump = to_dict

    def keys(self) -> Iterable[str]:
        """Return the names of `to_dict`, so that `dict(…)` and web frameworks can encode this."""
        return self.to_dict().keys()

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]


class TokenDetails(ResponseData, frozen=True, kw_only=True):
    """The breakdown of a number of tokens; None if the server does not say."""

    text_tokens: Number | None = None
    image_tokens: Number | None = None
    extra: dict[str, Any] = {}


class Usage(ResponseData, frozen=True, kw_only=True):
    """The tokens used; None if the server does not say."""

    total_tokens: Number | None = None
    input_tokens: Number | None = None
    output_tokens: Number | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None
    extra: dict[str, Any] = {}


class SvgUsage(ResponseData, frozen=True, kw_only=True):
    """The tokens for writing an SVG, counted separately; None if the server does not say."""

    model: str | None = None
    total_tokens: Number | None = None
    input_tokens: Number | None = None
    output_tokens: Number | None = None
    reasoning_tokens: Number | None = None
    extra: dict[str, Any] = {}


class RateLimit(ResponseData, frozen=True, kw_only=True):
    """The `x-ratelimit-*` headers; `reset_*` are in seconds; None if a header is missing."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


class Meta(ResponseData, frozen=True, kw_only=True):
    """Metadata of the exchange behind a result.

    `elapsed` is in seconds for the whole call, `first_byte` in seconds from the start of the last
    attempt to its headers. `rate_limit` is None where the server sent no such headers,
    `idempotency_key` where none was sent.

    `cost` is the cost of the response as reported by the server, else according to the client's
    `pricing`. None means unknown, never free. Earlier attempts, which may have been paid for, are
    not included. `currency` is that of the cost, such as `USD`; None if the cost is unknown.
    """

    request_id: str | None
    status: int
    attempts: int
    elapsed: float
    first_byte: float
    rate_limit: RateLimit | None
    idempotency_key: str | None
    cost: Decimal | None = None
    currency: str | None = None


class Event(ResponseData, frozen=True, kw_only=True):
    """Base class of partial and completed images; all but the first two fields may be None."""

    type: str
    image: Image
    created_at: Number | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    extra: dict[str, Any] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = f"use event.image.{name}." if hasattr(Image, name) else None
            raise missing_attribute(self, name, advice)

    @property
    def b64_json(self) -> str | None:
        """The image in base64, encoded at each access; None while it is only a URL."""
        return self.image.b64_json

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data as the API sends it, without fields that are None.

        `images=False` omits the base64 content.
        """
        fields = super().to_dict(images=images)
        return {**fields.pop("image"), **fields}

    model_dump = to_dict


class PartialImage(Event, frozen=True, kw_only=True):
    """An unfinished image; `partial_image_index` counts from 0, or is None."""

    partial_image_index: int | None = None


class CompletedImage(Event, frozen=True, kw_only=True):
    """A finished image; if there are several, each repeats the `usage` of the call."""

    usage: Usage | None = None
    svg_usage: SvgUsage | None = None
    safety_identifier: str | None = None


@dataclass(init=False, eq=False, repr=False)
class ImagesResponse(Sequence[Image]):
    """The images of one call, as a sequence and as `data`.

    The other attributes are None if the server does not say; `created` is in seconds since 1970,
    and `extra` has all fields without an attribute, as they were sent.
    """

    data: list[Image]
    created: Number | None
    usage: Usage | None
    size: str | None
    quality: str | None
    background: str | None
    output_format: str | None
    svg_usage: SvgUsage | None
    safety_identifier: str | None
    extra: dict[str, Any]
    meta: Meta = None  # type: ignore[assignment]  # the call sets it

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
        svg_usage: SvgUsage | None = None,
        safety_identifier: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self.data = list(data)
        self.created = created
        self.usage = usage
        self.size = size
        self.quality = quality
        self.background = background
        self.output_format = output_format
        self.svg_usage = svg_usage
        self.safety_identifier = safety_identifier
        self.extra = {} if extra is None else extra

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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = None
            if name in ("image", "images"):
                advice = "its images are result[0], result[1], …, or for image in result."
            elif not name.startswith("_") and hasattr(Image, name):
                advice = f"each of its images has it, as in result[0].{name}."
            elif name in ("model_dump_json", "to_json", "json"):
                advice = "use json.dumps(result.to_dict())."
            elif name in ("_request_id", "request_id"):
                advice = "use result.meta.request_id."
            raise missing_attribute(self, name, advice)

    def __repr__(self) -> str:
        return f"<ImagesResponse {self.data!r}>"

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data as the API sends it, without fields that are None.

        `images=False` omits the base64 content.
        """
        fields = {**vars(self)}
        extra = fields.pop("extra")
        fields.pop("meta", None)
        return {**extra, **_plain(fields, images)}

    model_dump = to_dict

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from elkimg_async.notebook import grid

        return {"text/plain": repr(self), "text/html": grid(self.data)}


def _plain(fields: dict[str, Any], images: bool) -> dict[str, Any]:
    plain = {name: to_plain(value, images=images) for name, value in fields.items()}
    return {name: value for name, value in plain.items() if value is not None}


def add_usage(one: Usage | None, other: Usage | None) -> Usage | None:
    """Return the sum of two usages; None counts as zero."""
    total: Usage | None = _sum(one, other)
    return total


def add_cost(costs: Mapping[str, Decimal], meta: Meta | None) -> dict[str, Decimal]:
    """Return the sums by currency, with the cost of one more response."""
    if meta is None or meta.cost is None:
        return dict(costs)
    currency = meta.currency or "USD"
    return {**costs, currency: costs.get(currency, Decimal(0)) + meta.cost}


def _sum(one: Any, other: Any) -> Any:
    """Return the sum of two numbers, or field by field that of two structs of numbers."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, ResponseData):
        names = [name for name in one.__struct_fields__ if name != "extra"]
        return type(one)(**{name: _sum(getattr(one, name), getattr(other, name)) for name in names})
    return one + other
