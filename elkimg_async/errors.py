"""Every error that leaves this package, split by whose fault it is.

ElkImagesError
├── ConfigurationError               no key, bad base URL, closed client
├── InvalidRequestError (ValueError) refused before sending
├── APIError                         the server said no
│   ├── BadRequestError              400 and other 4xx; also 500 invalid_request
│   │   └── ModerationError          the prompt or the picture was blocked
│   ├── AuthenticationError          401
│   ├── PermissionDeniedError        403
│   │   └── QuotaExceededError       the balance or quota is used up (429 or 403)
│   ├── NotFoundError                404, 501; also 503 model_not_found
│   ├── RateLimitError               429
│   └── ServerError                  5xx
├── NetworkError                     no answer
│   ├── ConnectError                 DNS, refused, TLS
│   ├── RequestTimeoutError (TimeoutError)
│   └── DisconnectedError            reset, truncated body
├── ResponseError                    an answer that is not one
│   └── EmptyResultError             2xx without a usable image, or without a body
├── StreamError
│   ├── StreamIncompleteError        ended without a completed image
│   └── StreamStateError             iterated twice, by two tasks, after close
├── DownloadError                    a URL image could not be fetched
├── BatchError
│   ├── BatchStoppedError            a limit of the run was reached
│   └── JournalError                 unreadable, or of other requests
└── JobError
    ├── JobNotFoundError             no job has this id
    ├── JobConflictError             the id belongs to a job with other parameters
    ├── JobCancelledError            the job was cancelled
    ├── JobLostError                 the process that ran the job ended
    └── StoreError                   the store is full, unreachable or of another version
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

Billing = Literal["not_sent", "refused", "unknown", "billed"]


class ElkImagesError(Exception):
    """The root of all errors of this package.

    The fields of a class are its annotated attributes; each is a keyword of
    its constructor, and the default stands beside the annotation.
    """

    message: str = ""
    """What happened, without the advice and the request id that `str()` adds."""
    request_id: str | None = None
    """The server's name for the request; None when no answer named one."""
    attempts: int = 0
    """How often the request was tried, the first time included; 0 when it was never tried."""
    billing: Billing = "unknown"
    """Whether an image may have been paid for: `not_sent`, `refused`, `unknown` or `billed`."""

    advice: ClassVar[str] = ""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in fields.items():
            if name not in self._fields():
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        text = " ".join(part for part in (self.message, self._advise()) if part)
        if self.request_id is None or f"request id: {self.request_id}" in text:
            return text
        return f"{text} (request id: {self.request_id})"

    @classmethod
    def _fields(cls) -> set[str]:
        annotated = (getattr(base, "__annotations__", {}) for base in cls.__mro__)
        return {name for names in annotated for name in names} - {"advice"}

    def _advise(self) -> str:
        return _PERHAPS_MADE if self.billing == "unknown" else self.advice

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)

    def locate(self, request_id: str | None) -> Self:
        """Name the request that failed, where that is not known yet; returns the error itself."""
        if self.request_id is None:
            self.request_id = request_id
        return self


_PERHAPS_MADE = "The image may have been made; check before you ask for it again."


def _restore(
    cls: type[ElkImagesError], args: tuple[Any, ...], fields: dict[str, Any]
) -> ElkImagesError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(ElkImagesError):
    """The client cannot work as it was set up; the caller has to change that."""

    billing: Billing = "not_sent"


class InvalidRequestError(ElkImagesError, ValueError):
    """The request is known to be refused, so it was not sent; the caller has to change it."""

    billing: Billing = "not_sent"
    param: str | None = None
    """The name of the parameter at fault; None when it is not a single one."""


class APIError(ElkImagesError):
    """The server said no."""

    billing: Billing = "refused"
    status: int | None = None
    """The HTTP status; 200 for an error inside an answer that began well."""
    code: str | None = None
    type: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = {}
    """The response headers, names in lower case."""
    body: Any = None
    """The decoded JSON of the answer, or the beginning of its text; None when it was empty."""
    retry_after: float | None = None
    """Seconds that the server asks to wait; None when it names none."""
    images: Sequence[Any] = ()
    """The images that came before an error inside an answer (`Image`)."""


class BadRequestError(APIError):
    """The server calls the request wrong; the caller has to change it."""

    advice = "Change the request; sending it again as it is will fail again."

    def _advise(self) -> str:
        if self.status == 407:
            return "Check the proxy settings."
        return (
            "Send it again a little later." if self.status in (408, 409, 425) else super()._advise()
        )


class ModerationError(BadRequestError):
    """The prompt or the picture was blocked by the server's content rules."""

    advice = "Reword the prompt or change the picture."


class AuthenticationError(APIError):
    """The API key is missing, unknown or used up."""

    advice = "Check the API key (ELKAPI_API_KEY) and that it belongs to this base URL."


class PermissionDeniedError(APIError):
    """The key is known but may not do this."""

    advice = "Check what this key may use: model, group and allowed addresses."


class QuotaExceededError(PermissionDeniedError):
    """The account's balance or quota is used up."""

    advice = "Top up the account or raise its quota; waiting alone does not help."


class NotFoundError(APIError):
    """The endpoint or the model is not there."""

    advice = "Check the model's name, and that the base URL ends in /v1."


class RateLimitError(APIError):
    """Too many requests for now."""

    advice = "Wait a while, or send fewer requests at once."


class ServerError(APIError):
    """The server failed."""

    advice = "This is the server's failure, not the request's; ask again later."


class NetworkError(ElkImagesError):
    """There was no answer, or only a part of one."""

    phase: str | None = None
    """Where it failed: `queue` (waiting for its turn within `Limits`, or while the server wants it slower),
    `connect`, `tls` (a bad certificate), `upload`, `first_byte` or `body`."""


class ConnectError(NetworkError):
    """No connection: the name was not found, the port refused, or TLS failed."""

    billing: Billing = "not_sent"
    advice = "Check the base URL, the network, and the proxy settings."


class RequestTimeoutError(NetworkError, TimeoutError):
    """A limit of `Timeout` has passed."""

    limit: str | None = None
    """The limit that has passed: `total`, `connect`, `first_byte`, `idle` or `download`."""

    def _advise(self) -> str:
        return f"Raise it with Timeout({self.limit}=…)." if self.limit else ""


class DisconnectedError(NetworkError):
    """The connection broke before the answer was whole."""

    def _advise(self) -> str:
        return "Ask again." if self.billing == "not_sent" else super()._advise()


class ResponseError(ElkImagesError):
    """An answer came, but it is not one: HTML, a redirect, broken JSON or base64, over a limit."""

    images: Sequence[Any] = ()
    """The images of the same answer that are good (`Image`)."""
    status: int | None = None
    """The HTTP status; None when the answer ended before it was known."""
    body: str | None = None
    """The beginning of the answer as text; None when it says nothing."""


class EmptyResultError(ResponseError):
    """The server reported success but gave no usable image."""


class StreamError(ElkImagesError):
    """A stream did not go as it must."""

    partials: Sequence[Any] = ()
    """The partial images received so far (`PartialImage`)."""


class StreamIncompleteError(StreamError):
    """The stream ended without a completed image."""


class StreamStateError(StreamError):
    """The caller used a stream twice, from two tasks at once, or after closing it."""

    billing: Billing = "not_sent"


class DownloadError(ElkImagesError):
    """The image was made, but its URL could not be fetched; fetch it again, never generate it again."""

    billing: Billing = "billed"
    advice = "The image was made: read it again, never generate it again."
    url: str | None = None
    """The address without its query, which may hold a signature; None when it is unknown."""
    status: int | None = None
    """The HTTP status of the download; None when there was no answer."""


class BatchError(ElkImagesError):
    """A run over many requests cannot go on."""

    billing: Billing = "not_sent"


class BatchStoppedError(BatchError):
    """A run stopped before its input ended because a limit of the caller's was reached."""

    reason: str | None = None
    """The limit: `max_errors`, `max_images` or `max_total_tokens`."""
    totals: Any = None
    """What was done until then."""


class JournalError(BatchError):
    """The journal cannot be read, or belongs to other requests."""


class JobError(ElkImagesError):
    """A job has no result, or cannot be found, started or stored."""

    billing: Billing = "not_sent"


class JobNotFoundError(JobError):
    """No job has this id; it may have been deleted or have expired."""


class JobConflictError(JobError):
    """The id belongs to a job with other parameters, or to one that is still running."""


class JobCancelledError(JobError):
    """The job was cancelled before it finished."""

    images: Sequence[Any] = ()
    """The images that were completed before (`Image`)."""
    partials: Sequence[Any] = ()
    """The newest partial image, if there was one (`PartialImage`)."""


class JobLostError(JobError):
    """The process that ran the job ended, and the job must not be sent again on its own."""

    billing: Billing = "unknown"
    idempotency_key: str | None = None
    """The idempotency key that the request was sent with; None where none was."""
    images: Sequence[Any] = ()
    """The images that were completed before (`Image`)."""
    partials: Sequence[Any] = ()
    """The newest partial image, if there was one (`PartialImage`)."""


class StoreError(JobError):
    """The store of the jobs is full, unreachable, in use, or was written by another version."""


__all__ = [
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
    "BatchStoppedError",
    "Billing",
    "ConfigurationError",
    "ConnectError",
    "DisconnectedError",
    "DownloadError",
    "ElkImagesError",
    "EmptyResultError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobConflictError",
    "JobError",
    "JobLostError",
    "JobNotFoundError",
    "JournalError",
    "ModerationError",
    "NetworkError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RateLimitError",
    "RequestTimeoutError",
    "ResponseError",
    "ServerError",
    "StoreError",
    "StreamError",
    "StreamIncompleteError",
    "StreamStateError",
]
