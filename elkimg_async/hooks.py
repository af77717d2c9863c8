"""What hooks receive: one frozen record for each thing that happens.

A hook is any callable that takes one record. It runs in the event loop and must not block; an
exception from it is logged and otherwise ignored. No record holds the API key, or the body of a
request or response.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

logger = logging.getLogger("elkimg_async")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of records; `call` is the same number for all records of one call."""

    call: int


class RequestStarted(Record, frozen=True):
    """The start of a call.

    `request` is the `GenerateRequest` or `EditRequest`, or None for the list of models. It goes to
    `url` with `method`.
    """

    request: Any
    stream: bool
    url: str = ""
    method: str = "POST"


class AttemptStarted(Record, frozen=True):
    """The start of an attempt; the first is number 1."""

    attempt: int


class ResponseStarted(Record, frozen=True):
    """The arrival of a response's status and headers.

    `first_byte` is in seconds since the attempt started. `request_id` is None if the response has
    none.
    """

    attempt: int
    status: int
    request_id: str | None
    first_byte: float


class RetryScheduled(Record, frozen=True):
    """A retry: an attempt failed with `error`, and the next one starts in `delay` seconds."""

    attempt: int
    error: Exception
    delay: float


class EventReceived(Record, frozen=True):
    """A decoded partial or completed image; `event` is what the stream yields."""

    event: Any


class EventSkipped(Record, frozen=True):
    """A skipped event of a stream, and the `reason`; `type` is None for an event without one."""

    type: str | None
    reason: str


class RequestFinished(Record, frozen=True):
    """The end of a call, after `elapsed` seconds.

    `result` is the `ImagesResponse` or `Models`; it is None if `error` is set, or if a stream was
    closed early.
    """

    elapsed: float
    result: Any = None
    error: BaseException | None = None


Hook = Callable[[Any], object]


class Observers:
    """The hooks that observe one call."""

    __slots__ = ("_call", "_hooks")

    def __init__(self, hooks: Sequence[Hook], call: int) -> None:
        self._hooks, self._call = hooks, call

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def notify(self, record: type[Record], **fields: Any) -> None:
        """Pass a record with these fields to each hook; a hook that fails is logged."""
        if not self._hooks:
            return
        happened = record(call=self._call, **fields)
        for hook in self._hooks:
            try:
                hook(happened)
            except Exception:
                logger.warning("the hook %r failed", hook, exc_info=True)
