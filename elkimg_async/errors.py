"""All errors raised by this package.

ElkImagesError
├── ConfigurationError               no API key, bad base URL, closed client
├── InvalidRequestError (ValueError) rejected before it was sent
├── APIError                         the server returned an error
│   ├── BadRequestError              400 and other 4xx; also 500 invalid_request
│   │   └── ModerationError          the prompt or an image was blocked
│   ├── AuthenticationError          401
│   ├── PermissionDeniedError        403
│   │   └── QuotaExceededError       no credit or quota left (402; 403 or 429 by code)
│   ├── NotFoundError                404, 501; also 503 model_not_found
│   ├── RateLimitError               429
│   └── ServerError                  5xx
├── NetworkError                     no response, or only a part of one
│   ├── ConnectError                 DNS, connection not accepted, TLS
│   ├── RequestTimeoutError (TimeoutError)
│   └── DisconnectedError            reset, truncated body
├── ResponseError                    a response that cannot be used
│   └── EmptyResultError             2xx without an image
├── StreamError
│   ├── StreamIncompleteError        ended without a completed image
│   └── StreamStateError             iterated twice, by two tasks, after close
├── DownloadError                    the URL of an image could not be fetched
├── BatchError
│   ├── BatchStoppedError            a limit of the run was reached, or all requests would fail
│   └── JournalError                 unreadable, in use, or for other requests
└── JobError
    ├── JobNotFoundError             no job has this id
    ├── JobConflictError             the id belongs to a job with other parameters
    ├── JobCancelledError            the job was cancelled
    ├── JobLostError                 the process that ran the job ended
    └── StoreError                   the store is full, unreachable or incompatible
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from elkimg_async.plain import class_name, encoded_fields, to_plain

Billing = Literal["not_sent", "refused", "unknown", "billed"]

_MAX_SHOWN = 2_000  # characters of the server's message in the text of an error
_IN_BETWEEN = "It comes from something in between, such as a proxy or CDN, not from the API."
_CHECK_PATH = "Check the base URL and the network, or try again later."
_TITLE = re.compile(r"<title[^>]*>\s*([^<]{1,200}?)\s*</title>", re.IGNORECASE)


class ElkImagesError(Exception):
    """Root of all errors of this package.

    The fields of a class are its annotated attributes; each is a keyword argument of its
    constructor, with the default beside the annotation. `str()` builds its text from them.
    """

    message: str = ""
    """What happened, without the advice and the request id that `str()` adds."""
    request_id: str | None = None
    """The server's id of the request; None if no response had one."""
    idempotency_key: str | None = None
    """The idempotency key that the request was sent with; None if there was none."""
    attempts: int = 0
    """How often the request was tried, including the first time; 0 if it never was."""
    billing: Billing = "unknown"
    """Whether an image may have been paid for: `not_sent`, `refused`, `unknown` or `billed`."""
    images: Sequence[Any] = ()
    """The finished images that arrived before the call failed (`Image`)."""
    partials: Sequence[Any] = ()
    """The partial images that arrived before the call failed (`PartialImage`)."""

    advice: ClassVar[str] = ""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in fields.items():
            if name not in self._fields():
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        parts = (self._describe(), self._advise(), self._warn_of_billing())
        text = " ".join(part for part in parts if part)
        if self.request_id is None or f"request id: {self.request_id}" in text:
            return text
        return f"{text} (request id: {self.request_id})"

    @classmethod
    def _fields(cls) -> set[str]:
        annotated = (getattr(base, "__annotations__", {}) for base in cls.__mro__)
        return {name for names in annotated for name in names} - {"advice"}

    def _describe(self) -> str:
        """Return a sentence that says what happened."""
        return self.message

    def _advise(self) -> str:
        return self.advice

    def _warn_of_billing(self) -> str:
        if self.billing != "unknown":
            return ""
        named = f" (idempotency key: {self.idempotency_key})" if self.idempotency_key else ""
        again = f"check before sending the request again{named}"
        return f"An image may have been created and billed; {again}."

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def locate(self, request_id: str | None) -> Self:
        """Set the request id if it is not known yet, and return the error itself."""
        if self.request_id is None:
            self.request_id = request_id
        return self

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return the class, the text and the fields that are not empty, as plain data.

        `images=False` omits the base64 content.
        """
        fields: dict[str, Any] = {"error": self.error, "text": self.text}
        for name in sorted(self._fields()):
            value = to_plain(getattr(self, name), images=images)
            if value not in (None, "", [], {}):
                fields[name] = value
        return fields

    model_dump = to_dict
    error = property(class_name)
    text = property(str, doc="The same as `str()`.")
    __dataclass_fields__ = property(encoded_fields)


def _sentence(text: str) -> str:
    text = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    return text if text[-1:] in (".", "!", "?", "…", "。") else text + "."


class ConfigurationError(ElkImagesError):
    """The client is misconfigured or closed."""

    billing: Billing = "not_sent"


class InvalidRequestError(ElkImagesError, ValueError):
    """The request would fail, so it was not sent."""

    billing: Billing = "not_sent"
    param: str | None = None
    """The name of the parameter; None if no single one is the cause."""


class APIError(ElkImagesError):
    """The server returned an error.

    `message` is the server's message, word for word; "" if it sent none.
    """

    billing: Billing = "refused"
    status: int | None = None
    """The HTTP status; 200 for an error inside a response that reported success."""
    code: str | None = None
    """The server's code for the error; None if it has none."""
    type: str | None = None
    """The server's name for the kind of error; None if it has none."""
    param: str | None = None
    """The parameter that caused the error; None if the server names none."""
    headers: Mapping[str, str] = {}
    """The response headers, names in lower case."""
    body: Any = None
    """The decoded JSON of the response, or its text; None if it was empty."""
    retry_after: float | None = None
    """The delay requested by the server, in seconds; None if it does not say."""
    model: str | None = None
    """The model of the request; None if the request names none."""

    @property
    def status_code(self) -> int | None:
        """The same as `status`; openai's name for it."""
        return self.status

    def _advise_model(self) -> str:
        model = "the name of the model" if self.model is None else f"the model {self.model!r}"
        offered = "those that the server offers (elkimg models, or await client.models())"
        return f"Check {model} against {offered}."

    def _describe(self) -> str:
        label = self.code if self.code != str(self.status) else None
        label = label or self.type
        named = f" ({label})" if label else ""
        if self.status is None:
            return self.message
        kind = "an error with status " if self.status < 400 else ""
        start = f"The server returned {kind}{self.status}"
        if not self.message and self._is_page():
            return f"{start}{named} with a web page{self._title()}. {_IN_BETWEEN}"
        return f"{start}{named}: {_sentence(self.message)}" if self.message else f"{start}{named}."

    def _advise(self) -> str:
        return _CHECK_PATH if self._is_page() and self.status not in (404, 407) else self.advice

    def _is_page(self) -> bool:
        """Return whether the body is a web page, which no API sends."""
        return isinstance(self.body, str) and self.body.lstrip()[:1] == "<"

    def _title(self) -> str:
        match = _TITLE.search(self.body)
        return f" titled “{match[1]}”" if match else ""


class BadRequestError(APIError):
    """The server rejected the request."""

    advice = "Change the request; sending it again unchanged will fail again."

    def _advise(self) -> str:
        if self.status == 407:
            return "Check the proxy settings."
        if self.model is not None and self.param == "model":
            return self._advise_model()
        if self.billing == "unknown" and self.status in (408, 446, 499):
            return ""  # a gateway gave up, or rejected what its upstream had created
        if self.status in (408, 409, 425):
            return "Send it again a little later."
        return super()._advise()


class ModerationError(BadRequestError):
    """The prompt or an image was blocked by the server's content policy."""

    advice = "Reword the prompt or change the image."
    moderation: Any = None
    """The `moderation_details` of the server, as sent; None if there are none."""


class AuthenticationError(APIError):
    """The API key is missing, unknown or expired."""

    advice = "Check the API key (ELKAPI_API_KEY) and that it belongs to this base URL."


class PermissionDeniedError(APIError):
    """The API key is valid but does not permit this request."""

    advice = "Check what this API key may use: model, group and allowed addresses."


class QuotaExceededError(PermissionDeniedError):
    """The account has no credit or quota left."""

    advice = "Top up the account or raise its quota; waiting alone does not help."


class NotFoundError(APIError):
    """The endpoint or the model does not exist."""

    advice = "Check that the base URL ends in /v1, and that the server has this endpoint."

    def _advise(self) -> str:
        if self.code == "model_not_found" or self.param == "model":
            return self._advise_model()
        if self.model is None or self.status == 501:
            return self.advice
        return f"{self.advice} {self._advise_model()}"


class RateLimitError(APIError):
    """Too many requests in a short time."""

    advice = "Wait a while, or send fewer requests at once."


class ServerError(APIError):
    """The server failed."""

    def _advise(self) -> str:
        if self._is_page():
            return super()._advise()
        return "" if self.billing == "unknown" else "Try again later."


class NetworkError(ElkImagesError):
    """There was no response, or only a part of one."""

    phase: str | None = None
    """Where it failed: `queue` (waiting for `Limits` or because of a 429), `dns` (the host cannot
    be resolved), `connect`, `proxy` (it rejected the connection), `tls` (an invalid certificate),
    `upload`, `first_byte` or `body`."""


class ConnectError(NetworkError):
    """No connection: the host was not found, the port rejected it, or TLS failed."""

    billing: Billing = "not_sent"
    advice = "Check the base URL, the network, and the proxy settings."
    status: int | None = None
    """The status with which a proxy rejected the connection; None if none did."""

    def _advise(self) -> str:
        if self.phase == "tls":
            return (
                "Check the server's certificate and its host name, the clock, and the authorities "
                "that this machine trusts; SSL_CERT_FILE names a file with further ones."
            )
        return "Check the proxy settings." if self.phase == "proxy" else super()._advise()


class RequestTimeoutError(NetworkError, TimeoutError):
    """A limit of `Timeout` has passed."""

    limit: str | None = None
    """The limit that has passed: `total`, `connect`, `first_byte`, `idle` or `download`."""

    def _advise(self) -> str:
        return f"Raise it with Timeout({self.limit}=…)." if self.limit else ""


class DisconnectedError(NetworkError):
    """The connection broke before the response was complete."""

    def _advise(self) -> str:
        return "Try again." if self.billing == "not_sent" else ""


class ResponseError(ElkImagesError):
    """A response that cannot be used: HTML, a redirect, broken JSON or base64, over a limit."""

    status: int | None = None
    """The HTTP status; None if the response ended before it was known."""
    body: str | None = None
    """The response as text, without its images; None if it was empty."""
    content: bytes | None = None
    """The bytes sent in place of an image; None if there were none."""


class EmptyResultError(ResponseError):
    """The server reported success but returned no image."""

    task_id: str | None = None
    """The asynchronous job that the server started instead; None if it named none."""


class StreamError(ElkImagesError):
    """A stream cannot continue."""


class StreamIncompleteError(StreamError):
    """The stream ended without a completed image; `partials` has the others."""


class StreamStateError(StreamError):
    """A stream was used twice, from two tasks at once, or after closing it."""

    billing: Billing = "not_sent"


class DownloadError(ElkImagesError):
    """The image was created, but its URL could not be downloaded."""

    billing: Billing = "billed"
    advice = "The image exists: read it again instead of generating it again."
    url: str | None = None
    """The address without its query, which may contain a signature; None if it is unknown."""
    status: int | None = None
    """The HTTP status of the download; None if there was no response."""


class BatchError(ElkImagesError):
    """A run over many requests cannot continue."""

    billing: Billing = "not_sent"


class BatchStoppedError(BatchError):
    """A run stopped early: a limit was reached, or every further request would fail."""

    reason: str | None = None
    """The limit (`max_errors`, `max_images`, `max_total_tokens` or `max_cost`), or why further
    requests would fail: `configuration`, `authentication`, `quota`, `dns`, `tls` or `proxy`."""
    totals: Any = None
    """The totals of the run when it stopped (`Totals`)."""


class JournalError(BatchError):
    """The journal cannot be read, or was written for other requests."""


class JobError(ElkImagesError):
    """A job has no result, or cannot be found, started or stored."""

    billing: Billing = "not_sent"


class JobNotFoundError(JobError):
    """No job has this id; it may have been deleted or have expired."""


class JobConflictError(JobError):
    """The id belongs to a job with other parameters, or to one that is still running."""


class JobCancelledError(JobError):
    """The job was cancelled before it finished."""


class JobLostError(JobError):
    """The process that ran the job ended, and sending it again could be billed twice."""

    billing: Billing = "unknown"


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
