"""Request headers set by the user, and interpretation of response headers."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.encode import HTTPRequest, is_json
from elkimg_async.sansio.responses import RateLimit


def check_headers(headers: Any) -> dict[str, str]:
    """Return the user's own headers after checking them; None means no headers.

    Raises:
        InvalidRequestError: If a header cannot be sent, or is the API key.
    """
    if headers is None:
        return {}
    problem = None
    if not isinstance(headers, Mapping):
        problem = "pass a mapping of strings"
    else:
        for name, value in headers.items():
            if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                problem = f"{name!r} is not the name of a header"
            elif not isinstance(value, str) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
                problem = f"the value of {name} must be a string without line breaks"
            elif name.lower() == "authorization":
                problem = "pass the API key as api_key, not as a header"
            elif name.lower() in _FRAMING:
                problem = f"{name} is derived from the body and cannot be set"
            elif not is_json(value):
                problem = f"the value of {name} is not valid Unicode"
    if problem:
        raise InvalidRequestError(
            f"The extra headers are not valid: {problem}.", param="extra_headers"
        )
    return {"Host" if name.lower() == "host" else name: value for name, value in headers.items()}


_FRAMING = {"content-length", "transfer-encoding"}


def take_idempotency_key(headers: dict[str, str]) -> str | None:
    """Remove the user's own Idempotency-Key from the headers and return it."""
    found = None
    for name in [name for name in headers if name.lower() == "idempotency-key"]:
        found = headers.pop(name)
    return found


def with_headers(request: HTTPRequest, headers: Mapping[str, str]) -> HTTPRequest:
    """Return the request with the user's own headers, which replace ours in any case."""
    if not headers:
        return request
    return msgspec.structs.replace(request, headers=merge(request.headers, headers))


def merge(headers: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return both sets of headers; those of `more` win, whatever the case of their names."""
    if not more:
        return dict(headers)
    replaced = {name.lower() for name in more}
    kept = {name: value for name, value in headers.items() if name.lower() not in replaced}
    return {**kept, **more}


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the gateway's id of the request, else the upstream's."""
    return headers.get("x-oneapi-request-id") or headers.get("x-request-id") or None


def cost_header(headers: Mapping[str, str]) -> str | None:
    """Return the cost that LiteLLM and gateways like it report in US dollars; None without it."""
    return headers.get("x-litellm-response-cost") or None


def content_length(headers: Mapping[str, str]) -> int:
    """Return the announced length of a body in bytes; 0 if there is none."""
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the delay requested by the server, in seconds; `now` is in seconds since 1970."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if value is None or seconds is not None:
        return seconds
    import email.utils  # slow to import, and rarely needed

    return _until(value, email.utils.parsedate_to_datetime, now)


def rate_limit(headers: Mapping[str, str], now: float) -> RateLimit | None:
    """Return the values of the `x-ratelimit-*` headers; `now` is in seconds since 1970."""
    fields: dict[str, Any] = {}
    for name in RateLimit.__struct_fields__:
        text = headers.get("x-ratelimit-" + name.replace("_", "-"))
        if text is None:
            continue
        if name.startswith("reset"):
            fields[name] = _reset(text, now)
        else:
            number = _number(text)
            fields[name] = None if number is None else int(number)
    return RateLimit(**fields) if fields else None


_MIN_EPOCH = 1e9  # as seconds, 2001; no reset is that far away
_MIN_EPOCH_MILLISECONDS = 1e12


def _number(text: str | None) -> float | None:
    """Return a plain non-negative decimal number; None for anything else."""
    return float(text) if text and re.fullmatch(r"\s*\d{1,15}(\.\d{0,15})?\s*", text) else None


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _reset(text: str, now: float) -> float | None:
    """Return the seconds until a reset: a duration like `6m30s`, a number, or a point in time."""
    number = _number(text)
    if number is not None:
        if number >= _MIN_EPOCH:
            number = number / 1000 if number >= _MIN_EPOCH_MILLISECONDS else number
            return max(0.0, number - now)
        return number
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if parts and "".join(number + unit for number, unit in parts) == text.strip():
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _until(text.strip(), datetime.fromisoformat, now)


def _until(text: str, parse: Callable[[str], datetime], now: float) -> float | None:
    """Return the seconds until a date, in UTC unless it names a zone; None if it is not one."""
    try:
        date = parse(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None
