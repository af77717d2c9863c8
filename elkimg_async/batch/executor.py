"""Execution of jobs: sending, downloading, saving and recording; shared by `map` and Ray.

What is recorded, and where, is up to the store: `RunStore` for a run of `map`, `SharedStore` for
workers on Ray with a folder.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from elkimg_async.batch.job import BatchJob, JobResult
from elkimg_async.batch.journal import (
    MadeRecord,
    PendingImage,
    ResponseRecord,
    SavedFile,
    fields_of,
)
from elkimg_async.batch.storage import OutputFolder, Slots
from elkimg_async.errors import (
    APIError,
    BatchError,
    BatchStoppedError,
    DownloadError,
    ElkImagesError,
)
from elkimg_async.hooks import AttemptStarted
from elkimg_async.image import Image
from elkimg_async.sansio.requests import EditRequest
from elkimg_async.sansio.responses import ImagesResponse, Meta
from elkimg_async.sansio.retry import is_in_flight

IN_FLIGHT_PAUSE = 0.5
"""Seconds between two requests for an image that an earlier attempt is still producing."""
IN_FLIGHT_LIMIT = 600.0
"""Seconds after which no further request is sent; no image takes longer."""

T = TypeVar("T")


class JobStore(Protocol):
    """Storage of the records of jobs; methods raise OSError if the disk fails."""

    @property
    def folder(self) -> OutputFolder | None:
        """The folder for images; None: they are returned."""
        ...

    async def begin(self, job: BatchJob) -> None:
        """Record that a request is about to be sent."""

    async def note_pending(self, job: BatchJob, record: MadeRecord, elapsed: float) -> None:
        """Record the URLs of images that have not been downloaded yet."""

    async def finish(
        self, job: BatchJob, record: MadeRecord, error: ElkImagesError | None, elapsed: float
    ) -> None:
        """Record the end of a job, successful or not."""


async def send_while_in_flight(send: Callable[[], Awaitable[T]], *, repeated: bool) -> T:
    """Send a request, and send it again while an earlier attempt is still being processed.

    `repeated` is whether it may have been sent before, with the same idempotency key.
    """
    began = time.monotonic()
    while True:
        try:
            return await send()
        except APIError as error:
            if not ((repeated or error.billing == "unknown") and is_in_flight(error)):
                raise
            if time.monotonic() - began > IN_FLIGHT_LIMIT:
                error.billing = "unknown"  # the earlier attempt may still produce the image
                raise
        await asyncio.sleep(IN_FLIGHT_PAUSE)


class WaitingCalls:
    """The calls that wait for their turn, which can be cancelled without those being sent."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Task[Any] | None, anyio.CancelScope] = {}
        self._reason: ElkImagesError | None = None

    def observe(self, record: object) -> None:
        """Record that the current task is being sent; this is a hook of the client."""
        if isinstance(record, AttemptStarted):
            self._waiting.pop(asyncio.current_task(), None)

    def cancel(self, error: ElkImagesError) -> None:
        """Fail these calls, and every later one, with an error that names this one."""
        self._reason = error
        for scope in self._waiting.values():
            scope.cancel()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call, unless it is cancelled before its first attempt starts.

        Raises:
            BatchStoppedError: If it is cancelled; nothing was sent.
        """
        task = asyncio.current_task()
        if self._reason is None:
            with anyio.CancelScope() as scope:
                self._waiting[task] = scope
                try:
                    return await call
                finally:
                    self._waiting.pop(task, None)
        call.close()
        raise BatchStoppedError(f"Not sent, because the run has stopped: {self._reason}")


class ImageClient(Protocol):
    """The part of a client that sends jobs."""

    @property
    def generate(self) -> Callable[..., Any]: ...
    @property
    def edit(self) -> Callable[..., Any]: ...


class Sender:
    """The calls of a client that send jobs.

    Args:
        client: The client that sends them.
        connect: Enables an image to download its URL.
        headers: Additional headers for every request.
        stream: Whether responses are streamed.
        waiting: The calls to cancel when the run stops. None: they are never cancelled.
    """

    def __init__(
        self,
        client: ImageClient,
        *,
        connect: Callable[[Image], None],
        headers: Mapping[str, str],
        stream: bool,
        waiting: WaitingCalls | None = None,
    ) -> None:
        self._client = client
        self.connect, self._headers, self._stream = connect, headers, stream
        self.waiting = waiting or WaitingCalls()

    async def send(self, job: BatchJob) -> ImagesResponse:
        """Send a job, and send it again while an earlier attempt is still being processed."""
        return await send_while_in_flight(
            lambda: self.waiting.run(self._send_once(job)), repeated=job.repeated
        )

    async def _send_once(self, job: BatchJob) -> ImagesResponse:
        headers = dict(self._headers)
        if job.idempotency_key is not None:
            headers = {name: headers[name] for name in headers if name.lower() != "idempotency-key"}
            headers["Idempotency-Key"] = job.idempotency_key
        call = self._call(job)(stream=self._stream, extra_headers=headers)
        if not self._stream:
            response: ImagesResponse = await call
            return response
        async with call as stream:
            response = await stream.result()
        return response  # noqa: RET504 - a type, which the call hides

    def _call(self, job: BatchJob) -> Callable[..., Any]:
        if not isinstance(job.request, EditRequest):
            return partial(self._client.generate, job.request)
        fields = msgspec.structs.asdict(job.request)
        options = {name: value for name, value in fields.items() if value is not None}
        return partial(self._client.edit, options.pop("image"), options.pop("prompt"), **options)


class Executor:
    """Executor of jobs, any number at a time.

    Args:
        sender: Sends the jobs.
        store: Stores their records and images.
    """

    def __init__(self, sender: Sender, store: JobStore) -> None:
        self._sender, self._store = sender, store

    async def execute(self, job: BatchJob) -> JobResult:
        """Execute one job; once its response has arrived, cancelling waits until it is on disk.

        Raises:
            JournalError: If nothing can be recorded any more.
        """
        began, known = time.monotonic(), job.record
        if isinstance(known, ResponseRecord) and known.urls:  # already paid for: only download
            slots = self._pending_slots(known.urls)
            made = MadeRecord(**fields_of(ResponseRecord, known))
            if self._store.folder is not None:
                return await self._keep(job, made, slots, None, began)
            response = ImagesResponse((image for _, image in slots), usage=known.usage)
            if made.meta is not None:
                response.meta = made.meta
            return JobResult(job=job, record=made, response=response, elapsed=_since(began))
        await self._store.begin(job)
        try:
            response = await self._sender.send(job)
        except ElkImagesError as error:
            return await self._fail(job, error, began)
        meta: Meta | None = response.meta
        made = MadeRecord(
            **job.record_fields(),
            images=len(response),
            cost=job.cost(meta, meta.attempts) if meta else job.worst,
            currency=job.currency or (meta.currency if meta else None),
            usage=response.usage,
            meta=meta,
        )
        if self._store.folder is not None:
            return await self._keep(job, made, list(enumerate(response)), response, began)
        return JobResult(job=job, record=made, response=response, elapsed=_since(began))

    async def _fail(self, job: BatchJob, error: ElkImagesError, began: float) -> JobResult:
        """Record a failure, and save the images that came with it: they are paid for."""
        if job.resumes is not None and error.billing in ("not_sent", "refused"):
            # The earlier attempt, with the same idempotency key, may have created the image.
            error.billing = "unknown"
        spent = job.n if error.billing in ("unknown", "billed") else 0
        cost = job.cost(None, error.attempts) if spent else Decimal(0)
        made = MadeRecord(**job.record_fields(), images=spent, cost=cost, currency=job.currency)
        images = [image for image in error.images if image.content]
        try:
            files = await _shielded(self._save(job, list(enumerate(images)), many=True))
        except OSError as problem:
            return await self._fail_on_disk(job, made, problem, None, began)
        made = msgspec.structs.replace(made, files=files)
        return await self._end(job, made, error, began)

    async def _keep(
        self,
        job: BatchJob,
        made: MadeRecord,
        slots: Slots,
        response: ImagesResponse | None,
        began: float,
    ) -> JobResult:
        """Save the images of a response; the URLs of those to be downloaded are recorded first."""
        received = [(position, image) for position, image in slots if image.content is not None]
        remote = [(position, image) for position, image in slots if image.content is None]
        save = partial(self._save, job, many=made.images > 1)
        end = partial(self._end, urls=tuple(image.url for _, image in slots if image.url))
        try:
            made = _with(made, await _shielded(save(received)), _pending(remote))
            if remote and response is not None:
                await _shielded(self._store.note_pending(job, made, _since(began)))
            files, urls, failure = await _download(remote, save)
            made = _with(made, files, urls)
            if failure is not None:
                return await end(job, made, failure, began)
            return await _shielded(end(job, made, None, began))
        except OSError as problem:
            return await self._fail_on_disk(job, made, problem, response, began)

    async def _save(self, job: BatchJob, slots: Slots, *, many: bool) -> tuple[SavedFile, ...]:
        folder = self._store.folder
        if folder is None or not slots:
            return ()
        return await anyio.to_thread.run_sync(partial(folder.write, job.stem, slots, many=many))

    async def _end(
        self,
        job: BatchJob,
        made: MadeRecord,
        error: ElkImagesError | None,
        began: float,
        urls: tuple[str, ...] = (),
    ) -> JobResult:
        await self._store.finish(job, made, error, _since(began))
        return JobResult(job=job, record=made, urls=urls, error=error, elapsed=_since(began))

    async def _fail_on_disk(
        self,
        job: BatchJob,
        made: MadeRecord,
        problem: OSError,
        response: ImagesResponse | None,
        began: float,
    ) -> JobResult:
        """Return the images that were received, and stop the run before more is paid for."""
        error = BatchError(
            f"The image was created, but cannot be saved: {problem.strerror}. Fix that, and start "
            "the same run again.",
            billing="billed",
        )
        error.request_id = made.meta.request_id if made.meta else None
        result = await self._end(job, made, error, began)
        return msgspec.structs.replace(result, response=response, stop=error)

    def _pending_slots(self, urls: Sequence[PendingImage]) -> Slots:
        slots = [(pending.position, Image(url=pending.url)) for pending in urls]
        for _, image in slots:
            self._sender.connect(image)
        return slots


def _since(began: float) -> float:
    return time.monotonic() - began


def _with(
    made: MadeRecord, files: tuple[SavedFile, ...], urls: tuple[PendingImage, ...]
) -> MadeRecord:
    return msgspec.structs.replace(made, files=made.files + files, urls=urls)


def _pending(slots: Slots) -> tuple[PendingImage, ...]:
    return tuple(PendingImage(position, image.url or "") for position, image in slots)


async def _download(
    slots: Slots, save: Callable[[Slots], Coroutine[Any, Any, tuple[SavedFile, ...]]]
) -> tuple[tuple[SavedFile, ...], tuple[PendingImage, ...], DownloadError | None]:
    """Download and `save` images; return the files, the images still pending, and the error."""
    files: tuple[SavedFile, ...] = ()
    pending: list[tuple[int, Image]] = []
    failure: DownloadError | None = None
    for position, image in slots:
        try:
            await image.read()
        except DownloadError as error:
            failure = error
            pending.append((position, image))
        else:
            files += await _shielded(save([(position, image)]))
    return files, _pending(pending), failure


async def _shielded(step: Coroutine[Any, Any, T]) -> T:
    """Run a step to completion, even if the run is being cancelled."""
    with anyio.CancelScope(shield=True):
        return await step
    raise AssertionError("nothing cancels this scope")
