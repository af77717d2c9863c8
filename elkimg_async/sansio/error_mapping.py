"""Mapping of error bodies and statuses to exceptions."""

import re
from collections.abc import Mapping
from typing import Any

from elkimg_async import errors
from elkimg_async.errors import APIError, Billing, ResponseError
from elkimg_async.image import Image
from elkimg_async.sansio.error_words import Words, read_words, with_upstream_labels
from elkimg_async.sansio.find_images import find_images, images_of
from elkimg_async.sansio.headers import request_id, retry_after
from elkimg_async.sansio.json_images import InvalidJSON, JSONDecoder

MAX_BODY_TEXT = 65_536
"""Characters of an unreadable body that are stored in an error."""

_MODERATION = re.compile(
    r"moderation|content_?policy|content_?filter|sensitive_?content|sensitive_?words|data_?inspection_?failed"
    r"|prompt_blocked|safety_violation|safety_system|unsafe_content|content_blocked|risk_control|nsfw"
    r"|image_safety|^safety$|prohibited_content",
    re.IGNORECASE,
)
_QUOTA_CODES = {
    "insufficient_quota",
    "insufficient_user_quota",
    "pre_consume_token_quota_failed",
    "insufficient_balance",
    "insufficient_credits",
    "payment_required",
    "billing_hard_limit_reached",
    "quota_exceeded",
    "arrearage",
}
# 5xx codes that mean that processing never began: nothing can have been billed.
_NOT_BEGUN_CODES = {
    "do_request_failed",
    "get_channel_failed",
    "no_available_channel",
    "channel_not_available",
    "channel:no_available_key",
    "channel:invalid_key",
    "channel:model_mapped_error",
    "convert_request_failed",
    "gen_relay_info_failed",
    "count_token_failed",
    "model_price_error",
    "invalid_api_type",
    "read_request_body_failed",
    "bad_request_body",
    "model_not_found",
    "api_not_implemented",
    "access_denied",
}
_OVERLOAD = re.compile(r"overload|^server_busy$|^engine_busy$|^service_unavailable$", re.IGNORECASE)
_NOT_BEGUN_STATUSES = {501, 503, 529}
# 408 means that the request did not arrive in time, but gateways also send it when their own time
# limit for their upstream has passed, which does not stop the upstream.
_GAVE_UP = re.compile(
    r"^timeout(?:_?error)?$|(?:upstream|gateway|provider)_?time_?out|deadline"
    r"|timed out|timeout error|exceeded the time-?\s?(?:out|limit)|upstream.{0,40}time-?\s?out",
    re.IGNORECASE,
)
# 446: Portkey rejected the response that its upstream had produced. 499: the gateway saw its client
# disconnect.
_BEGUN_STATUSES = {446, 499}
_UNREADABLE_CODES = {
    "bad_response_body",
    "read_response_body_failed",
    "bad_response",
    "empty_response",
}
_WRAPPED_TEXT = "html-message"  # Portkey's name for what its upstream sent instead of JSON

_CLASS_OF_STATUS: dict[int, type[APIError]] = {
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    429: errors.RateLimitError,
    501: errors.NotFoundError,
}
_TYPES_OF_STATUS = {
    400: ("invalid_request_error", "invalid_request", "badrequesterror", "invalid_argument"),
    401: ("authentication_error", "authenticationerror", "invalid_api_key", "unauthenticated"),
    403: ("permission_error", "permission_denied"),
    404: ("not_found_error", "notfounderror", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded", "ratelimiterror", "resource_exhausted"),
    500: ("api_error", "server_error", "internal_server_error", "upstream_error"),
    529: ("overloaded_error",),
}
_STATUS_OF_TYPE = {name: status for status, names in _TYPES_OF_STATUS.items() for name in names}


def response_error(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> APIError | ResponseError:
    """Return the error for a response other than 2xx; `now` is in seconds since 1970.

    `headers` is any mapping that finds names in lower case.
    """
    named = request_id(headers)
    # A redirected POST becomes a GET of a web page, so no redirect is followed.
    if status < 400:
        return ResponseError(
            f"The server returned a redirect ({status}){_to(headers)}, which is never followed. "
            "Check the base URL.",
            request_id=named,
            status=status,
        )
    # An error that carries an image is still an error, but the image was made, and may be billed.
    value, images = _read_body(body)
    error = api_error(status, value)
    error.images = images
    if images:
        error.billing = "unknown"
    error.headers = {name.lower(): value for name, value in headers.items()}
    error.retry_after = retry_after(headers, now)
    return error.locate(named)


def _read_body(body: bytes) -> tuple[Any, tuple[Image, ...]]:
    """Return an error body as JSON or text, and the images in it."""
    # Web pages and plain text are kept as they are; anything else goes through the image decoder,
    # so that an image in the body is neither lost nor cut off.
    text = body.decode("utf-8-sig", "replace").strip()
    if text[:1] not in ("{", "[", '"'):
        return text[:MAX_BODY_TEXT] or None, ()
    decoder = JSONDecoder(len(body))
    decoder.feed(body)
    try:
        document = decoder.finish()
    except InvalidJSON:
        return decoder.text(MAX_BODY_TEXT), images_of(decoder.salvage(), of_error=True)
    value, images = document.restore(document.value), find_images(document, of_error=True).images
    if isinstance(value, dict) and [*value] == [_WRAPPED_TEXT]:
        wrapped = value[_WRAPPED_TEXT]
        value = wrapped.strip() if isinstance(wrapped, str) else value
    return value, images


def api_error(status: int, value: Any) -> APIError:
    """Return the error described by a body; `status` is 200 inside a 2xx response."""
    # Not for a 5xx: a code such as do_request_failed, quoted from the upstream, would mean that
    # nothing was billed, but the gateway may have repeated the request.
    words = read_words(value)
    if status < 500:
        words = with_upstream_labels(words)
    implied = _implied(status, words)
    kind = _error_class(implied, words)
    error = kind(
        words.message,
        status=status,
        code=words.code,
        type=words.type,
        param=words.param,
        body=value,
        billing=_billing(status, implied, kind, words),
    )
    if isinstance(error, errors.ModerationError):
        error.moderation = words.moderation
    return error


def _labels(words: Words) -> tuple[str, str]:
    return (words.code or "").lower(), (words.type or "").lower()


def _error_class(status: int | None, words: Words) -> type[APIError]:
    labels = _labels(words)
    if words.moderation is not None or any(_MODERATION.search(label) for label in labels):
        return errors.ModerationError
    # Codes are more precise than statuses: quota comes as 402, 403 or 429.
    if status == 402 or _QUOTA_CODES & {*labels}:
        return errors.QuotaExceededError
    # The gateway's statuses for validation and for a model without a channel.
    if status == 500 and "invalid_request" in labels:
        return errors.BadRequestError
    if status == 503 and "model_not_found" in labels:
        return errors.NotFoundError
    if status is None:
        return APIError
    usual = errors.BadRequestError if status < 500 else errors.ServerError
    return _CLASS_OF_STATUS.get(status, usual)


def _implied(status: int, words: Words) -> int | None:
    """Return the status of an error, which a 2xx response has in its body if at all."""
    if status >= 400:
        return status
    # The code is often the status itself, as at Google and LiteLLM.
    code, kind = _labels(words)
    if re.fullmatch(r"[45][0-9][0-9]", code):
        return int(code)
    return _STATUS_OF_TYPE.get(code) or _STATUS_OF_TYPE.get(kind)


def _billing(status: int, implied: int | None, kind: type[APIError], words: Words) -> Billing:
    """Return the billing of an error response.

    Gateways return 5xx with any code after their upstream has created the image; only the codes
    that mean "not begun", and the statuses 501, 503 and 529, exclude that. An error inside a 2xx
    response has no status of its own: the gateway had accepted the request, and a stream may have
    been under way for a minute. It counts as the status `implied` by its code or type, and as an
    unknown 5xx if they name none.
    """
    # The order matters: "begun" wins over "not begun", since a wrong "refused" can lead to a retry
    # and a second paid image, and a wrong "unknown" only to an error.
    labels = {*_labels(words)}
    if labels & _UNREADABLE_CODES or status in _BEGUN_STATUSES:
        return "unknown"
    if implied == 408 and any(map(_GAVE_UP.search, (*labels, words.message))):
        return "unknown"
    if labels & _NOT_BEGUN_CODES or any(map(_OVERLOAD.search, labels)):
        return "refused"
    is_known = issubclass(kind, (errors.ModerationError, errors.QuotaExceededError))
    if implied is None and not is_known:
        return "unknown"
    is_begun = issubclass(kind, errors.ServerError) and implied not in _NOT_BEGUN_STATUSES
    return "unknown" if is_begun else "refused"


def too_long(max_bytes: int) -> ResponseError:
    """Return the error for a body of more than `max_bytes`."""
    return ResponseError(
        f"The response is longer than {max_bytes:,} bytes. "
        "Raise the limit with Limits(max_response_bytes=…)."
    )


def _to(headers: Mapping[str, str]) -> str:
    location = headers.get("location")
    return f" to {location.partition('?')[0][:200]}" if location else ""
