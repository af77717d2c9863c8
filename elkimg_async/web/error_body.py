"""What a browser may know of an error."""

import re
from collections.abc import Mapping
from typing import Any

from elkimg_async import errors
from elkimg_async.errors import ElkImagesError, InvalidRequestError

_SENTENCES: Mapping[type[Exception], str] = {
    errors.ConfigurationError: "This site's image service is not set up properly.",
    errors.InvalidRequestError: "The request is not valid.",
    errors.ModerationError: "The prompt or the image was blocked by the content rules.",
    errors.AuthenticationError: "This site's image service is not set up properly.",
    errors.PermissionDeniedError: "This site may not use the image service in this way.",
    errors.QuotaExceededError: "This site's allowance for images is used up.",
    errors.NotFoundError: "The image service does not know this model.",
    errors.RateLimitError: "Too many images are being requested; try again in a while.",
    errors.ServerError: "The image service failed.",
    errors.APIError: "The image service rejected the request.",
    errors.RequestTimeoutError: "The image took too long.",
    errors.ConnectError: "The image service cannot be reached.",
    errors.NetworkError: "The connection to the image service broke.",
    errors.ResponseError: "The image service sent no usable response.",
    errors.StreamIncompleteError: "The image service stopped before the image was complete.",
    errors.DownloadError: "The image was generated, but could not be downloaded.",
    errors.JobNotFoundError: "There is no such image job; it may have expired.",
    errors.JobConflictError: "This id belongs to another image job.",
    errors.JobCancelledError: "The image was cancelled.",
    errors.JobLostError: "The image was lost when this site restarted.",
    errors.StoreError: "This site cannot store images at the moment.",
    Exception: "Something went wrong here, and there is no image.",
}
_QUOTABLE = (errors.BadRequestError, errors.InvalidRequestError)
"""Errors whose message is about the browser's request, and so of use there."""
_OWN_PARAMS = ("extra_headers", "extra_body")  # set by the backend, not by the browser
_ADDRESS_OR_SECRET = re.compile(
    r"://|\bbearer\b|\b(?:sk|pk|rk|org|proj|sess)-\w"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-f:]*::[0-9a-f:]*\]|\blocalhost\b"
    r"|[\w-]+\.[a-z]{2,}\b|[a-z][\w-]*:\d{2,5}\b"
    r"|(?<![\w/])/\w[\w.-]*/|\b[a-z]:\\",
    re.IGNORECASE,
)


def error_body(error: BaseException) -> dict[str, dict[str, str | None]]:
    """Return what a browser may know of an error: a response's JSON, or an `error` event's data.

    `error` has `message`; `type`, the name of the class in `elkimg_async.errors`, or InternalError;
    the server's `code`; `param`; `billing`; `request_id`. A rejected request keeps the server's
    message, unless that seems to hold an address or an API key; every other error has a plain
    sentence. Nothing reveals API keys, addresses, headers or this program.
    """
    kind = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), None)
    known = error if isinstance(error, ElkImagesError) else None
    return {
        "error": {
            "message": _message(error),
            "type": kind.__name__ if kind else "InternalError",
            "code": _label(getattr(known, "code", None)),
            "param": _label(getattr(known, "param", None)),
            "billing": known.billing if known else "unknown",
            "request_id": _label(getattr(known, "request_id", None)),
        }
    }


def _message(error: BaseException) -> str:
    if isinstance(error, _QUOTABLE):
        own = isinstance(error, InvalidRequestError) and error.param in _OWN_PARAMS
        if error.message and not own and not _ADDRESS_OR_SECRET.search(error.message):
            return error.message
    if isinstance(error, errors.RateLimitError) and error.retry_after:
        return f"Too many images are being requested; try again in {error.retry_after:.0f} s."
    kinds = (kind for kind in type(error).__mro__ if kind in _SENTENCES)
    return _SENTENCES[next(kinds, Exception)]


def _label(value: Any) -> str | None:
    """Return a name such as servers use for codes and requests; None for anything longer."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.\[\]-]{1,128}", value) else None
