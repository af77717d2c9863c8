"""Encode requests as HTTP messages: method, path, headers and body.

Unset fields are not sent, and `stream` is a JSON boolean.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pybase64

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio import multipart
from elkimg_async.sansio.image_headers import ImageReference, InputImage
from elkimg_async.sansio.model_rules import is_gpt_image
from elkimg_async.sansio.multipart import Upload
from elkimg_async.sansio.requests import EditRequest, GenerateRequest, ImageRequest

USER_AGENT = "elkimg_async"

_COMMON = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
"""Headers of every request: base64 gains nothing from compression, and costs time."""


class HTTPRequest(msgspec.Struct, frozen=True):
    """An HTTP request without the parts that only the transport knows: base URL and API key."""

    method: str
    headers: dict[str, str]
    path: str = ""
    body: bytes | Upload | None = None


def generate(
    request: GenerateRequest,
    *,
    stream: bool,
    idempotency_key: str | None = None,
    boundary: str = "",
) -> HTTPRequest:
    """Return `POST /images/generations`; it has no parts for `boundary` to separate.

    Raises:
        InvalidRequestError: If a text or the `extra_body` cannot be written as JSON.
    """
    body = _encode(_fields(request, stream))
    return _post("/images/generations", "application/json", body, stream, idempotency_key)


def edit(
    request: EditRequest, *, stream: bool, boundary: str, idempotency_key: str | None = None
) -> HTTPRequest:
    """Return `POST /images/edits` for images that are open.

    The body is a form, with values other than text written as in JSON; `boundary` must not occur in
    any value. It is JSON if an image is a reference, or all of them are `data:` URLs.

    Raises:
        InvalidRequestError: If a text or the `extra_body` cannot be written.
    """
    fields = _fields(request, stream)
    if _needs_json(request):
        body = _encode({**_references(request), **fields})
        return _post("/images/edits", "application/json", body, stream, idempotency_key)
    texts = [
        (part, _text(name, value))
        for name, field in fields.items()
        for part, value in _flat(name, field)
        if value is not None
    ]
    name = "image" if len(request.images) == 1 else "image[]"
    files = [(name, image) for image in request.images]
    files += [(each, image) for each in ("mask", "markup") if (image := getattr(request, each))]
    form = multipart.encode(texts, files, boundary)
    return _post("/images/edits", multipart.content_type(boundary), form, stream, idempotency_key)


def _needs_json(request: EditRequest) -> bool:
    opened = (*request.images, *(each for each in (request.mask, request.markup) if each))
    if any(isinstance(each, ImageReference) for each in opened):
        return True
    return request.markup is None and all(each.url is not None for each in opened)


def _references(request: EditRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {"images": [_reference(image) for image in request.images]}
    if request.mask is not None:
        fields["mask"] = _reference(request.mask)
    return fields


def _reference(image: InputImage | ImageReference) -> dict[str, str]:
    if isinstance(image, ImageReference) and image.file_id is not None:
        return {"file_id": image.file_id}
    url = image.url
    if url is None:
        assert isinstance(image, InputImage)
        url = f"data:{image.media_type};base64,{pybase64.b64encode_as_string(image.source)}"
    return {"image_url": url}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a field: `svg[reasoning][effort]` for a mapping within a mapping."""
    if name.partition("[")[0] == "svg" and isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _flat(f"{name}[{inner}]", each)
    else:
        yield name, value


def models(request: None = None, **_: Any) -> HTTPRequest:
    """Return `GET /models`, which has no options."""
    return get("application/json", "/models")


def get(accept: str, path: str = "") -> HTTPRequest:
    """Return a GET request."""
    return HTTPRequest("GET", {"Accept": accept, **_COMMON}, path)


def _fields(request: ImageRequest, stream: bool) -> dict[str, Any]:
    fields = request.fields()
    if stream:
        fields["stream"] = True
        if is_gpt_image(fields["model"]) and fields.get("output_format") not in ("gif", "svg"):
            fields.setdefault("partial_images", 1)
    return {**fields, **(request.extra_body or {})}


def _post(
    path: str, content_type: str, body: bytes | Upload, stream: bool, idempotency_key: str | None
) -> HTTPRequest:
    headers = {
        "Content-Type": content_type,
        "Accept": "application/json, text/event-stream" if stream else "application/json",
        **_COMMON,
    }
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    return HTTPRequest("POST", headers, path, body)


def _text(name: str, value: Any) -> bytes:
    _encode({name: value})  # rejects what is not plain data, and text that is not Unicode
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _encode(fields: dict[str, Any]) -> bytes:
    try:
        encoded = msgspec.json.encode(fields)
        if b"null" not in encoded or _is_finite(fields):
            return encoded
        name = "extra_body"
    except _NOT_JSON:
        name = next(name for name, value in fields.items() if not is_json({name: value}))
    raise InvalidRequestError(
        f"{name} cannot be written as JSON; it must be plain data and valid Unicode.", param=name
    )


def _is_finite(value: Any) -> bool:
    """Return whether JSON can represent all numbers; the encoder writes others as null."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_NOT_JSON = (TypeError, ValueError, msgspec.MsgspecError, RecursionError)


def is_json(value: Any) -> bool:
    """Return whether plain data can be written as JSON."""
    try:
        msgspec.json.encode(value)
    except _NOT_JSON:
        return False
    return True
