"""A request → method, path, headers, body; status, headers, body → an error.

The rules stand in the service's documentation and in the source of the open
gateway that it matches: what is unset is not sent, `stream` is a JSON boolean,
and an error is told by its status first and its code second; messages are for
people and never parsed.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async import errors
from elkimg_async.errors import APIError, Billing, InvalidRequestError, ResponseError
from elkimg_async.sansio import forms
from elkimg_async.sansio.forms import Upload
from elkimg_async.sansio.models import is_gpt_image
from elkimg_async.sansio.payload import InvalidJSON, decode
from elkimg_async.sansio.requests import EditRequest, GenerateRequest, ImageRequest
from elkimg_async.sansio.responses import RateLimit, read_str

BODY_IN_ERRORS = 2_000
"""Characters of an unreadable answer that an error keeps."""

_MODERATION_CODES = {"moderation_blocked", "content_policy_violation", "content_filter"}
_QUOTA_CODES = {
    "insufficient_quota",
    "insufficient_user_quota",
    "pre_consume_token_quota_failed",
}
_UNKNOWN_OUTCOME_CODES = {"bad_response_body", "read_response_body_failed"}
_UNKNOWN_OUTCOME_STATUSES = {502, 504, 524}
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "invalid_request": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "upstream_error": 500,
}


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
    body = forms.encode(texts, files, boundary)
    return _post("/images/edits", forms.content_type(boundary), body, stream, key)


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
        "Accept": "text/event-stream, application/json" if stream else "application/json",
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
        name = next(name for name, value in fields.items() if not _is_json({name: value}))
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


def _is_json(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except _NOT_JSON:
        return False
    return True


def check_headers(headers: Any) -> dict[str, str]:
    """The caller's own headers; None means none.

    Raises:
        InvalidRequestError: by the caller, for what no header can hold, and for the key.
    """
    if headers is None:
        return {}
    problem = None
    if not isinstance(headers, Mapping):
        problem = "they must be a mapping of strings"
    else:
        for name, value in headers.items():
            if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                problem = f"{name!r} is no name of a header"
            elif not isinstance(value, str) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
                problem = f"the value of {name} must be a string without line breaks"
            elif name.lower() == "authorization":
                problem = "pass the key as api_key, not as a header"
            elif name.lower() in _FRAMING:
                problem = f"{name} follows from the body and cannot be set"
            elif not _is_json(value):
                problem = f"the value of {name} is not valid Unicode"
    if problem:
        raise InvalidRequestError(f"The extra headers are wrong: {problem}.", param="extra_headers")
    return {"Host" if name.lower() == "host" else name: value for name, value in headers.items()}


_FRAMING = {"content-length", "transfer-encoding"}


def take_key(headers: dict[str, str]) -> str | None:
    """Take the caller's own Idempotency-Key out of the headers, the last where there are several."""
    key = None
    for name in [name for name in headers if name.lower() == "idempotency-key"]:
        key = headers.pop(name)
    return key


def with_headers(request: HTTPRequest, headers: Mapping[str, str]) -> HTTPRequest:
    """The request with the caller's own headers, which replace ours whatever the case of their names."""
    if not headers:
        return request
    return msgspec.structs.replace(request, headers=merge(request.headers, headers))


def merge(headers: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Both; `more` replaces, whatever the case of the names."""
    if not more:
        return dict(headers)
    replaced = {name.lower() for name in more}
    kept = {name: value for name, value in headers.items() if name.lower() not in replaced}
    return {**kept, **more}


def request_id(headers: Mapping[str, str]) -> str | None:
    """The gateway's name for the request, else the upstream's."""
    return headers.get("x-oneapi-request-id") or headers.get("x-request-id") or None


def length(headers: Mapping[str, str]) -> int:
    """The bytes that a body says it has; 0 where it does not say."""
    said = headers.get("content-length") or ""
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else 0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a server asks to wait; `now` is in seconds since 1970."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if value is None or seconds is not None:
        return seconds
    import email.utils  # slow to import, and rarely needed
    from datetime import UTC

    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """What the `x-ratelimit-*` headers say; None without any."""
    said = {
        name.replace("-", "_"): text
        for name in _RATE_LIMITS
        if (text := headers.get(f"x-ratelimit-{name}")) is not None
    }
    if not said:
        return None
    fields: dict[str, Any] = {}
    for name, text in said.items():
        number = _duration(text) if name.startswith("reset") else _number(text)
        fields[name] = number if number is None or name.startswith("reset") else int(number)
    return RateLimit(**fields)


_RATE_LIMITS = [
    f"{part}-{unit}" for part in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
]


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> APIError | ResponseError:
    """The error that an answer other than 2xx means; `now` is in seconds since 1970.

    `headers` here and above is any mapping that finds names in lower case.
    """
    named = request_id(headers)
    if status < 400:
        return ResponseError(
            f"The server answered with status {status} and wants to send the request elsewhere"
            f"{_to(headers)}; check the base URL.",
            request_id=named,
            status=status,
        )
    text = body.decode("utf-8-sig", "replace").strip()
    value: Any = text[:BODY_IN_ERRORS] or None
    if text[:1] in ("{", "["):
        with contextlib.suppress(InvalidJSON):
            value = decode(body)
    error = api_error(status, value)
    error.headers = {name.lower(): value for name, value in headers.items()}
    error.retry_after = retry_after(headers, now)
    return error.locate(named)


def api_error(status: int, value: Any) -> APIError:
    """The error that a decoded body means, whatever its shape; `status` is 200 within a good answer."""
    detail = value
    if isinstance(value, Mapping):
        detail = value.get("error") or value.get("detail") or value
    fields = detail if isinstance(detail, Mapping) else {}
    code, type_ = _label(fields.get("code")), _label(fields.get("type"))
    kind = _error_class(status if status >= 400 else _implied_status(code, type_), code, type_)
    said = read_str(fields.get("message")) or read_str(detail) or _said_by_fastapi(detail)
    said = None if said is None or said.lstrip().startswith("<") else said.strip()
    where = f"status {status}" if status >= 400 else "an error inside a good answer"
    return kind(
        f"The server said no ({', '.join(filter(None, (where, code)))})"
        + (f": {_sentence(said)}" if said else "."),
        status=status,
        code=code,
        type=type_,
        param=_label(fields.get("param")),
        body=value,
        billing=_billing(status, code, value),
    )


def _said_by_fastapi(detail: Any) -> str | None:
    items = detail if isinstance(detail, list) else []
    said = [read_str(item.get("msg")) for item in items if isinstance(item, Mapping)]
    return "; ".join(text for text in said if text) or None


def _error_class(status: int | None, code: str | None, type_: str | None) -> type[APIError]:
    if _MODERATION_CODES & {code, type_}:
        return errors.ModerationError
    if _QUOTA_CODES & {code, type_}:
        return errors.QuotaExceededError
    if status == 500 and "invalid_request" in (code, type_):
        return errors.BadRequestError
    if status == 503 and code == "model_not_found":
        return errors.NotFoundError
    match status:
        case 401:
            return errors.AuthenticationError
        case 403:
            return errors.PermissionDeniedError
        case 404 | 501:
            return errors.NotFoundError
        case 429:
            return errors.RateLimitError
        case None:
            return APIError
        case _:
            return errors.BadRequestError if status < 500 else errors.ServerError


def _implied_status(code: str | None, type_: str | None) -> int | None:
    if code is not None and re.fullmatch(r"[45][0-9][0-9]", code):
        return int(code)
    return _STATUS_OF_TYPE.get(code or "") or _STATUS_OF_TYPE.get(type_ or "")


def _billing(status: int, code: str | None, value: Any) -> Billing:
    if code in _UNKNOWN_OUTCOME_CODES or status in _UNKNOWN_OUTCOME_STATUSES:
        return "unknown"
    if status >= 500 and status != 503 and not isinstance(value, (Mapping, list)):
        return "unknown"
    return "refused"


def _label(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**9 else None
    return read_str(value)


def _sentence(text: str) -> str:
    text = text if len(text) <= BODY_IN_ERRORS else text[:BODY_IN_ERRORS] + "…"
    return text if text[-1:] in (".", "!", "?", "…", "。") else text + "."


def _to(headers: Mapping[str, str]) -> str:
    location = headers.get("location")
    return f" ({location.partition('?')[0][:200]})" if location else ""


def _number(text: str | None) -> float | None:
    """A plain decimal number, not negative."""
    return float(text) if text and re.fullmatch(r"\s*\d{1,15}(\.\d{0,15})?\s*", text) else None


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(text: str | None) -> float | None:
    """Seconds of `1s`, `6m30s`, `20ms`, or of a plain number."""
    if (number := _number(text)) is not None or not text:
        return number
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if "".join(number + unit for number, unit in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
