"""Execution of jobs: sending, downloading, saving and recording; shared by `map` and Ray.

What is recorded, and where, is up to the store: `RunStore` for a run of `map`, `SharedStore` for
workers on Ray with a folder.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from elkimg_async.batch.job import BatchJob, JobResult
from elkimg_async.batch.journal import MadeRecord, PendingImage, ResponseRecord, fields_of
from elkimg_async.batch.storage import OutputFolder, Slots
from elkimg_async.errors import (
    APIError,
    BatchError,
    BatchStoppedError,
    DownloadError,
    ElkImagesError,
    JournalError,
)
from elkimg_async.hooks import AttemptStarted
from elkimg_async.image import Image
from elkimg_async.sansio.headers import take_idempotency_key
from elkimg_async.sansio.requests import EditRequest
from elkimg_async.sansio.responses import ImagesResponse, Meta
from elkimg_async.sansio.retry import is_in_flight
from elkimg_async.transport.download import enable_download

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
            # A 409 that says so proves that the earlier attempt has been taken up, so that this one
            # costs nothing; without an earlier attempt it is about another request.
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
        # The hook removes the task in the same step in which its attempt starts, so a scope that is
        # cancelled here belongs to a call of which nothing was sent.
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


class Sender:
    """The calls of a client that send jobs.

    Args:
        client: The `AsyncImages` that sends them, which imports this module.
        headers: Additional headers for every request.
        stream: Whether responses are streamed.
        waiting: The calls to cancel when the run stops. None: they are never cancelled.
    """

    def __init__(
        self,
        client: Any,
        *,
        headers: Mapping[str, str],
        stream: bool,
        waiting: WaitingCalls | None = None,
    ) -> None:
        self._client, self._headers, self._stream = client, headers, stream
        self.waiting = waiting or WaitingCalls()

    async def send(self, job: BatchJob) -> ImagesResponse:
        """Send a job, and send it again while an earlier attempt is still being processed."""
        return await send_while_in_flight(
            lambda: self.waiting.run(self._send_once(job)), repeated=job.repeated
        )

    def connect(self, image: Image) -> None:
        """Enable an image to download its URL, as those of the client's responses are."""
        enable_download(image, self._client._transport, self._client._settings)  # noqa: SLF001

    async def _send_once(self, job: BatchJob) -> ImagesResponse:
        headers = dict(self._headers)
        if job.idempotency_key is not None:
            take_idempotency_key(headers)
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


class Execution:
    """One job on its way from its first record to its last.

    Args:
        job: The job.
        sender: Sends it.
        store: Stores its records and images.
    """

    def __init__(self, job: BatchJob, sender: Sender, store: JobStore) -> None:
        self._job, self._sender, self._store = job, sender, store
        self._began = time.monotonic()
        self._made = MadeRecord(**job.record_fields())

    async def run(self) -> JobResult:
        """Execute the job; once its response has arrived, cancelling waits until it is on disk.

        Raises:
            JournalError: If nothing can be recorded any more.
        """
        job, known = self._job, self._job.record
        if isinstance(known, ResponseRecord) and known.urls:  # already paid for: only download
            self._made = MadeRecord(**fields_of(ResponseRecord, known))
            slots = self._pending_slots(known.urls)
            if self._store.folder is not None:
                return await self._keep(slots, None)
            response = ImagesResponse((image for _, image in slots), usage=known.usage)
            if known.meta is not None:
                response.meta = known.meta
            return self._result(response=response)
        # On disk before anything is sent: a killed run must know that it may have to pay for this.
        await self._store.begin(job)
        try:
            response = await self._sender.send(job)
        except ElkImagesError as error:
            return await self._fail(error)
        meta: Meta | None = response.meta
        self._update(
            images=len(response),
            cost=job.cost(meta, meta.attempts) if meta else job.worst,
            currency=job.currency or (meta.currency if meta else None),
            usage=response.usage,
            meta=meta,
        )
        if self._store.folder is not None:
            return await self._keep(list(enumerate(response)), response)
        return self._result(response=response)

    async def _fail(self, error: ElkImagesError) -> JobResult:
        """Record a failure, and save the images that came with it: they are paid for."""
        job = self._job
        if job.resumes is not None and error.billing in ("not_sent", "refused"):
            # The earlier attempt, with the same idempotency key, may have created the image.
            error.billing = "unknown"
        spent = job.n if error.billing in ("unknown", "billed") else 0
        cost = job.cost(None, error.attempts) if spent else Decimal(0)
        self._update(images=spent, cost=cost, currency=job.currency)
        images = [image for image in error.images if image.content]
        try:
            await _shielded(self._save(list(enumerate(images)), many=True))
        except OSError as problem:
            return await self._fail_on_disk(problem, None, error)
        return await self._end(error)

    async def _keep(self, slots: Slots, response: ImagesResponse | None) -> JobResult:
        """Save the images of a response; the URLs of those to be downloaded are recorded first."""
        received = [(position, image) for position, image in slots if image.content is not None]
        remote = [(position, image) for position, image in slots if image.content is None]
        urls = tuple(image.url for _, image in slots if image.url)
        many = self._made.images > 1
        try:
            # From here on cancelling waits for each step, but not for downloads, which may hang:
            # their URLs are on record, and the next run continues with them.
            await _shielded(self._save(received, many=many))
            self._update(urls=tuple(PendingImage(at, image.url or "") for at, image in remote))
            if remote and response is not None:
                note = self._store.note_pending(self._job, self._made, self._elapsed)
                await _shielded(note)
            failure = await self._download(remote, many=many)
            if failure is not None:
                return await self._end(failure, urls)
            return await _shielded(self._end(None, urls))
        except OSError as problem:
            return await self._fail_on_disk(problem, response)

    async def _download(self, slots: Slots, *, many: bool) -> DownloadError | None:
        """Download and save images; those that fail stay pending, and the last error counts."""
        failure: DownloadError | None = None
        for position, image in slots:
            try:
                await image.read()
            except DownloadError as error:
                failure = error
                continue
            await _shielded(self._save([(position, image)], many=many))
            # One by one, so that a disk that fails later leaves no image both saved and pending.
            pending = tuple(each for each in self._made.urls if each.position != position)
            self._update(urls=pending)
        return failure

    async def _save(self, slots: Slots, *, many: bool) -> None:
        """Save images of a response, which has one or `many`."""
        folder = self._store.folder
        if folder is not None and slots:
            write = partial(folder.write, self._job.stem, slots, many=many)
            self._update(files=self._made.files + await anyio.to_thread.run_sync(write))

    async def _fail_on_disk(
        self,
        problem: OSError,
        response: ImagesResponse | None,
        failure: ElkImagesError | None = None,
    ) -> JobResult:
        """Return the images that were received, and stop the run before more is paid for.

        `failure` is the error of the call, if it failed; the images are then those of the error.
        """
        # A hash means a journal or the like, where the next run finds the URLs to download.
        if self._made.urls and self._job.hash is not None:
            advice = "Fix that, and start the same run again: it downloads what is missing."
        else:
            where = ".images of this error" + ("" if response is None else ", and item.result")
            advice = (
                f"It is in memory only ({where}): save it from there. Fix that before starting the "
                "run again, which sends this request, and may bill its image, again."
            )
        failed = f" The call itself failed: {failure}" if failure is not None else ""
        error = BatchError(
            f"The image was created, but cannot be saved: {problem.strerror}. {advice}{failed}",
            billing="billed",
            images=tuple(response or (failure.images if failure is not None else ())),
            partials=() if failure is None else failure.partials,
        )
        error.request_id = self._made.meta.request_id if self._made.meta else None
        if failure is not None:
            error.request_id, error.attempts = failure.request_id, failure.attempts
            error.idempotency_key = failure.idempotency_key
            error.__cause__ = failure
        with contextlib.suppress(OSError, JournalError):  # the records may be on the same disk
            await self._end(error)
        return self._result(response=response, error=error, stop=error)

    async def _end(self, error: ElkImagesError | None, urls: tuple[str, ...] = ()) -> JobResult:
        await self._store.finish(self._job, self._made, error, self._elapsed)
        return self._result(urls=urls, error=error)

    def _result(self, **fields: Any) -> JobResult:
        return JobResult(job=self._job, record=self._made, elapsed=self._elapsed, **fields)

    def _update(self, **fields: Any) -> None:
        self._made = msgspec.structs.replace(self._made, **fields)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _pending_slots(self, urls: Sequence[PendingImage]) -> Slots:
        slots = [(pending.position, Image(url=pending.url)) for pending in urls]
        for _, image in slots:
            self._sender.connect(image)
        return slots


async def _shielded(step: Coroutine[Any, Any, T]) -> T:
    """Run a step to completion, even if the run is being cancelled."""
    with anyio.CancelScope(shield=True):
        return await step
    raise AssertionError("nothing cancels this scope")
