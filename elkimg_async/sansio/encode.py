"""Encode requests as HTTP messages: method, path, headers and body.

What is unset is not sent, and `stream` is a JSON boolean.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio import multipart
from elkimg_async.sansio.model_rules import is_gpt_image
from elkimg_async.sansio.multipart import Upload
from elkimg_async.sansio.requests import EditRequest, GenerateRequest, ImageRequest

USER_AGENT = "elkimg_async"

_COMMON = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
"""Headers of every request: base64 gains nothing from compression, and costs time."""


class HTTPRequest(msgspec.Struct, frozen=True):
    """What goes over the wire, the key and what only the transport knows left out; the path is added to the base URL."""

    method: str
    headers: dict[str, str]
    path: str = ""
    body: bytes | Upload | None = None


def generate(request: GenerateRequest, *, stream: bool, key: str | None = None) -> HTTPRequest:
    """`POST /images/generations`; `key` is the idempotency key, or None for none.

    Raises:
        InvalidRequestError: by the caller, for text or an `extra_body` that JSON cannot hold.
    """
    body = _encode(_fields(request, stream))
    return _post("/images/generations", "application/json", body, stream, key)


def edit(
    request: EditRequest, *, stream: bool, boundary: str, key: str | None = None
) -> HTTPRequest:
    """`POST /images/edits`, a form; `boundary` may occur in none of its values.

    What is no text in it, numbers and `stream` for instance, is written as JSON writes it.

    Raises:
        InvalidRequestError: by the caller, for text or an `extra_body` that a form cannot hold.
    """
    fields = _fields(request, stream)
    texts = [(name, _text(name, value)) for name, value in fields.items() if value is not None]
    name = "image" if len(request.image) == 1 else "image[]"
    files = [(name, image) for image in request.image]
    if request.mask is not None:
        files.append(("mask", request.mask))
    body = multipart.encode(texts, files, boundary)
    return _post("/images/edits", multipart.content_type(boundary), body, stream, key)


def models() -> HTTPRequest:
    """`GET /models`."""
    return get("application/json", "/models")


def get(accept: str, path: str = "") -> HTTPRequest:
    """A request for what is there."""
    return HTTPRequest("GET", {"Accept": accept, **_COMMON}, path)


def message(
    request: HTTPRequest, target: str, host: str | None, headers: Mapping[str, str]
) -> bytes:
    """A request whose body is at hand as HTTP/1.1 writes it, with `headers` instead of its own.

    A Host among them replaces `host`.
    """
    lines = [f"{request.method} {target} HTTP/1.1"]
    if "Host" not in headers:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join((*lines, "\r\n")).encode()
    return head + request.body if isinstance(request.body, bytes) else head


def _fields(request: ImageRequest, stream: bool) -> dict[str, Any]:
    fields = request.fields()
    if stream:
        fields["stream"] = True
        if is_gpt_image(fields["model"]):
            fields.setdefault("partial_images", 1)
    return {**fields, **(request.extra_body or {})}


def _post(
    path: str, content_type: str, body: bytes | Upload, stream: bool, key: str | None
) -> HTTPRequest:
    headers = {
        "Content-Type": content_type,
        "Accept": "application/json, text/event-stream" if stream else "application/json",
        **_COMMON,
    }
    if key is not None:
        headers["Idempotency-Key"] = key
    return HTTPRequest("POST", headers, path, body)


def _text(name: str, value: Any) -> bytes:
    _encode({name: value})  # refuses what is no plain data, and text that is no Unicode
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
    """Whether JSON has all the numbers of plain data; the encoder turns the others into null."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_NOT_JSON = (TypeError, ValueError, msgspec.MsgspecError, RecursionError)


def is_json(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except _NOT_JSON:
        return False
    return True
