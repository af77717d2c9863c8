"""The record of a job and its events, and their form as plain data."""

import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from elkimg_async.error_records import read_error, write_error
from elkimg_async.errors import ElkImagesError, JobCancelledError, JobLostError
from elkimg_async.image import Image
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.requests import InputField, image_count
from elkimg_async.sansio.responses import (
    CompletedImage,
    ImagesResponse,
    Meta,
    PartialImage,
    Usage,
)

VERSION = 1
"""Version of the data in stores."""
MAX_EVENTS = 1000
"""How many event ids belong to one job."""

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
FINISHED: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})


class JobPartialImage(PartialImage, frozen=True, kw_only=True):
    """A partial image. `id` identifies the event; `events(…, after=id)` continues after it."""

    id: int


class JobCompletedImage(CompletedImage, frozen=True, kw_only=True):
    """A finished image. `id` identifies the event; `events(…, after=id)` continues after it."""

    id: int


JobEvent: TypeAlias = JobPartialImage | JobCompletedImage


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """An image that an edit sends. `reference` is set for one that the server fetches itself."""

    param: InputField
    size: int = 0
    sha256: str | None = None
    reference: Any = None


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One job as it is now.

    Attributes:
        id: Its name.
        state: `queued`, `running`, `done`, `failed`, `cancelled` or `lost`.
        prompt: The text of the request.
        parameters: The other fields of the request that are set.
        created_at: When it was started; all times are in seconds since 1970.
        sent_at: When its request was sent; None before.
        finished_at: When it reached its last state; None before.
        usage: The tokens used; None if the server does not report them.
        request_id: The server's id of the request; None if there is none.
        attempts: How often the request was tried; 0 while that is unknown.
        idempotency_key: The idempotency key that the request is sent with; None without one.
    """

    id: str
    state: State = "queued"
    prompt: str
    parameters: dict[str, Any] = {}
    created_at: float
    sent_at: float | None = None
    finished_at: float | None = None
    usage: Usage | None = None
    request_id: str | None = None
    attempts: int = 0
    idempotency_key: str | None = None

    # What the registry needs to run, restore and compare it.
    first_id: int
    fingerprint: str
    edit: bool = False
    stream: bool = True
    resend: bool = True
    options: dict[str, Any] = {}
    runs: int = 0
    inputs: tuple[Input, ...] = ()
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINISHED

    @property
    def error(self) -> ElkImagesError | None:
        """The error of the job, with `billing`; None for a job that is done or unfinished."""
        if self.failure is None:
            return None
        error = read_error(self.failure, attempts=self.attempts)
        error.idempotency_key = self.idempotency_key
        return error

    @property
    def last_id(self) -> int:
        """The id of the end of the job: of its `[DONE]` or its error."""
        return self.first_id + MAX_EVENTS - 1

    @property
    def wanted(self) -> int:
        """The number of images requested."""
        return image_count(self.parameters.get("n"), self.parameters.get("extra_body"))

    @property
    def upload_count(self) -> int:
        """How many of its inputs are images that it sends itself, which the store keeps."""
        return sum(each.reference is None for each in self.inputs)

    def owns(self, event_id: int) -> bool:
        """Return whether an event id belongs to this job, not to an earlier one with its id."""
        return self.first_id <= event_id <= self.last_id


# --- transitions ------------------------------------------------------------


def send(job: Job, now: float) -> Job:
    """Return the job as it is once its request may be sent."""
    sent_at = now if job.sent_at is None else job.sent_at
    return replace(job, state="running", sent_at=sent_at, runs=job.runs + 1)


def complete(job: Job, response: ImagesResponse, now: float) -> Job:
    """Return the job with its result."""
    return replace(
        job,
        state="done",
        finished_at=now,
        usage=response.usage,
        request_id=response.meta.request_id,
        attempts=response.meta.attempts,
        result=write_response(response),
    )


def fail(job: Job, error: ElkImagesError, now: float) -> Job:
    """Return the job with the error that its call ended with."""
    return replace(
        job,
        state="failed",
        finished_at=now,
        request_id=error.request_id,
        attempts=error.attempts,
        failure=write_error(error),
    )


def cancel(job: Job, completed: int, now: float) -> Job:
    """Return the job as cancelled, after `completed` images had arrived."""
    error = JobCancelledError("The job was cancelled.")
    if job.sent_at is not None:
        error.billing = "billed" if completed else "unknown"
    return replace(job, state="cancelled", finished_at=now, failure=write_error(error))


def lose(job: Job, completed: int, now: float) -> Job:
    """Return the job as lost, because the process that ran it ended."""
    reason = (
        "the server is not known to replay idempotency keys"
        if job.resend
        else "its secret headers or query parameters are not stored"
    )
    error = JobLostError(
        f"The process that ran this job ended before the job did, and {reason}, so the job was not "
        "sent again."
    )
    error.billing = "billed" if completed else "unknown" if job.sent_at else "not_sent"
    return replace(job, state="lost", finished_at=now, failure=write_error(error))


def recover(job: Job, events: Sequence["Entry"], *, replay: bool, now: float) -> Job:
    """Return the state of an unfinished job whose process has ended.

    A job that is returned unfinished is to be run: either its request was never sent, or it may be
    sent again with its own idempotency key.
    """
    if job.finished or (job.state == "queued" and job.resend):
        return job
    completed = [event for event in events if event.completed]
    if len(completed) >= job.wanted:  # only the last record is missing
        usage = _read(completed[-1].fields.get("usage"), Usage | None)
        return replace(job, state="done", finished_at=now, usage=usage, result={})
    if replay and job.resend and job.idempotency_key is not None:
        return job
    return lose(job, len(completed), now)


# --- plain data -------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event without the bytes of its image; `size` is their number, if there are any."""

    id: int
    completed: bool = False
    fields: dict[str, Any] = {}
    image: dict[str, Any] = {}
    size: int | None = None


def write_event(event: ImageEvent, id: int) -> Entry:
    """Return an event as plain data."""
    image, content = event.image, event.image.content
    return Entry(
        id=id,
        completed=isinstance(event, CompletedImage),
        fields=_write(msgspec.structs.asdict(event), {"image", "id"}),
        image=_write(msgspec.structs.asdict(image), {"content"}),
        size=None if content is None else len(content),
    )


def number(event: ImageEvent, id: int) -> JobEvent:
    """Return the same event with an id, around the same image."""
    names = [name for name in event.__struct_fields__ if name != "id"]
    fields = {name: getattr(event, name) for name in names}
    if isinstance(event, CompletedImage):
        return JobCompletedImage(**fields, id=id)
    return JobPartialImage(**fields, id=id)


def read_event(entry: Entry, content: bytes | None) -> JobEvent:
    """Return the event that `write_event` wrote, with the bytes of its image."""
    kind = JobCompletedImage if entry.completed else JobPartialImage
    image = Image(content, **_read_fields(_types(Image), entry.image))
    fields = _read_fields(_types(kind), entry.fields)
    fields.setdefault("type", "image_generation.completed")
    return kind(**fields, image=image, id=entry.id)


def write_response(response: ImagesResponse) -> dict[str, Any]:
    """Return the fields of a response other than its images as plain data."""
    return _write(vars(response), {"data"})


def read_response(job: Job, images: Sequence[Image]) -> ImagesResponse:
    """Return the response of a finished job."""
    plain = job.result or {}
    fields = _read_fields(_response_types(), plain)
    response = ImagesResponse(images, **{"usage": job.usage, **fields})
    meta: Meta | None = _read(plain.get("meta"), Meta | None)
    response.meta = meta or Meta(
        request_id=job.request_id,
        status=200,
        attempts=job.attempts,
        elapsed=(job.finished_at or job.created_at) - job.created_at,
        first_byte=0.0,
        rate_limit=None,
        idempotency_key=job.idempotency_key,
    )
    return response


def _write(fields: Mapping[str, Any], skipped: set[str]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name not in skipped}
    plain = {name: _to_builtins(value) for name, value in kept.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _to_builtins(value: Any) -> Any:
    """Return plain data; None for values that cannot be written, which must not cost an image."""
    try:
        if isinstance(value, Mapping):
            value = dict(value)
        plain = msgspec.to_builtins(value)
        msgspec.json.encode(plain)
    except (TypeError, ValueError, RecursionError):
        return None
    return plain


def _read_fields(known: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the stored fields that are known, by name and type."""
    read = {name: _read(plain[name], known[name]) for name in plain if name in known}
    return {name: value for name, value in read.items() if value is not None}


# Resolving annotations would take a quarter of the time in which a reader joins.


@functools.cache
def _types(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


@functools.cache
def _response_types() -> dict[str, Any]:
    return typing.get_type_hints(ImagesResponse.__init__)


def _read(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, TypeError):
        return None
