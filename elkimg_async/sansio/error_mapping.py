"""Map error bodies and statuses to exceptions."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from elkimg_async import errors
from elkimg_async.errors import APIError, Billing, ResponseError
from elkimg_async.sansio.headers import request_id, retry_after
from elkimg_async.sansio.json_images import InvalidJSON, decode
from elkimg_async.sansio.responses import read_str

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
