"""What a hook is told: one frozen record of what just happened.

A hook is any callable that takes one record; it runs in the event loop and must
not block. What it raises is logged and otherwise ignored. No record holds the
API key or a request's or response's body.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What every record holds. `call` is the same for all records of one call of the client."""

    call: int


class RequestStarted(Record, frozen=True):
    """A call begins.

    `request` is the `GenerateRequest` or `EditRequest`, or None for the list of models; it goes with
    `method` to `url`.
    """

    request: Any
    stream: bool
    url: str = ""
    method: str = "POST"


class AttemptStarted(Record, frozen=True):
    """A try begins; the first is number 1."""

    attempt: int


class ResponseStarted(Record, frozen=True):
    """The status and headers of an answer are here. `first_byte` counts seconds since the try began."""

    attempt: int
    status: int
    request_id: str | None
    first_byte: float


class RetryScheduled(Record, frozen=True):
    """A try failed, and the next one begins in `delay` seconds."""

    attempt: int
    error: Exception
    delay: float


class EventReceived(Record, frozen=True):
    """A partial or completed image was decoded. `event` is what the iterator gives."""

    event: Any


class EventSkipped(Record, frozen=True):
    """An event of a stream was passed over. `reason` says why, `type` is its type where it has one."""

    type: str | None
    reason: str


class RequestFinished(Record, frozen=True):
    """A call is over. `result` is the `ImagesResponse`, or None when `error` is set or the stream was left."""

    elapsed: float
    result: Any = None
    error: BaseException | None = None


Hook = Callable[[Any], object]


def tell(hooks: Sequence[Hook], record: Record) -> None:
    """Give the record to each hook; a hook that fails is logged and harms nobody."""
    for hook in hooks:
        try:
            hook(record)
        except Exception:
            import logging

            logging.getLogger("elkimg_async").warning("the hook %r failed", hook, exc_info=True)
