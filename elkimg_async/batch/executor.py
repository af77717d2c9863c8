"""One request of a run, from the journal's first line about it to the last."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from elkimg_async.batch.budget import Budget
from elkimg_async.batch.journal import (
    DoneRecord,
    FailedRecord,
    MadeRecord,
    PendingImage,
    ResponseRecord,
    SavedFile,
    SentRecord,
    write_error,
)
from elkimg_async.batch.planner import Job, JobResult, paths_of, size_of
from elkimg_async.batch.run import MapItem
from elkimg_async.batch.storage import ManifestLine, OutputFolder, RunStore, stem_of
from elkimg_async.errors import (
    APIError,
    BatchError,
    DownloadError,
    ElkImagesError,
)
from elkimg_async.image import Image
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.sansio.retry import is_in_flight

IN_FLIGHT_PAUSE = 0.5
"""Seconds between two questions for what the attempt of an earlier run is still making."""
IN_FLIGHT_LIMIT = 600.0
"""Seconds after which it is not asked for any more; no image takes longer."""

T = TypeVar("T")
Slots = list[tuple[int, Image]]


class Executor:
    """Does jobs, any number side by side.

    Args:
        generate: `AsyncImages.generate`.
        connect: teaches an image to fetch its URL.
        headers: further headers of every request.
        stream: whether answers are streamed.
        store: the journal and the manifest.
        folder: where images go; None leaves them in the result.
        budget: is told what was spent.
    """

    def __init__(
        self,
        *,
        generate: Callable[..., Any],
        connect: Callable[[Image], None],
        headers: Mapping[str, str],
        stream: bool,
        store: RunStore,
        folder: OutputFolder | None,
        budget: Budget,
    ) -> None:
        self._generate, self._connect = generate, connect
        self._headers, self._stream = headers, stream
        self._store, self._folder, self._budget = store, folder, budget

    async def do(self, job: Job) -> JobResult:
        """Do one job. Once its answer is here, cancelling waits until that is on the disk.

        Raises:
            JournalError: by the file system; nothing can be noted any more.
        """
        record = job.record
        if isinstance(record, ResponseRecord) and record.urls:  # made and paid for: only fetch it
            slots = slots_of(record.urls, self._connect)
            if self._folder is not None:
                return await self._keep(job, _as(MadeRecord, record), slots, None)
            return _hand_over(
                job, record, ImagesResponse((image for _, image in slots), usage=record.usage)
            )
        if job.again is None:
            await self._store.commit(SentRecord(**job.fields(), images=job.n))
        try:
            response = await self._answer(job)
        except ElkImagesError as error:
            return await self._fail(job, error)
        tokens = response.usage.total_tokens if response.usage else None
        self._budget.spend(len(response), tokens)
        made = MadeRecord(
            **job.fields(),
            images=len(response),
            usage=response.usage,
            meta=response.meta,
        )
        if self._folder is not None:
            return await self._keep(job, made, list(enumerate(response)), response)
        return _hand_over(job, made, response)

    async def _answer(self, job: Job) -> ImagesResponse:
        """Ask, and while the attempt of an earlier run is still being answered, ask again."""
        since = time.monotonic()
        while True:
            try:
                return await self._ask(job)
            except APIError as error:
                waited = time.monotonic() - since
                earlier = job.record is not None or error.billing == "unknown"
                if not (earlier and is_in_flight(error)):
                    raise
                if waited > IN_FLIGHT_LIMIT:
                    error.billing = (
                        "unknown"  # the earlier attempt may still make it, under its key
                    )
                    raise
            await asyncio.sleep(IN_FLIGHT_PAUSE)

    async def _ask(self, job: Job) -> ImagesResponse:
        headers = dict(self._headers)
        if job.key is not None:
            headers = {name: headers[name] for name in headers if name.lower() != "idempotency-key"}
            headers["Idempotency-Key"] = job.key
        call = self._generate(job.request, stream=self._stream, extra_headers=headers)
        if not self._stream:
            response: ImagesResponse = await call
            return response
        async with call as stream:
            response = await stream.result()
        return response  # noqa: RET504 - a type, which `generate` hides

    async def _fail(self, job: Job, error: ElkImagesError) -> JobResult:
        """Note a failure, and keep the good images that came with it: they are paid for."""
        if job.again is not None and error.billing in ("not_sent", "refused"):
            error.billing = "unknown"  # the earlier attempt may have made it, under the same key
        spent = job.n if error.billing in ("unknown", "billed") else 0
        self._budget.spend(spent, None, answered=False)
        made = MadeRecord(**job.fields(), images=spent)
        if self._folder is not None:
            good = [image for image in getattr(error, "images", ()) if image.content]
            try:
                files = await _shielded(self._save(job, list(enumerate(good)), many=True))
            except OSError as problem:
                return await self._lose(job, made, problem, None)
            made = msgspec.structs.replace(made, files=files)
        return await self._end_badly(job, made, error)

    async def _keep(
        self, job: Job, made: MadeRecord, slots: Slots, response: ImagesResponse | None
    ) -> JobResult:
        """Bring the images of an answer to the disk; those behind URLs after noting where they are."""
        here, left = divide(slots)
        save = partial(self._save, job, many=made.images > 1)
        try:
            made = _with(made, await _shielded(save(here)), waiting(left))
            if left and response is not None:
                await _shielded(self._store.commit(made))
            saved, urls, failure = await fetch(left, save)
        except OSError as problem:
            return await self._lose(job, made, problem, response)
        made = _with(made, saved, urls)
        if failure is not None:
            return await self._end_badly(job, made, failure)
        return await _shielded(self._end_well(job, made))

    async def _save(self, job: Job, slots: Slots, *, many: bool) -> tuple[SavedFile, ...]:
        if not slots:
            return ()
        folder, stem = self._folder, stem_of(job.index, job.request.prompt)
        assert folder is not None

        def write() -> tuple[SavedFile, ...]:
            return tuple(
                folder.write(f"{stem}-{position + 1}" if many else stem, image, position)
                for position, image in slots
            )

        return await anyio.to_thread.run_sync(write)

    async def _end_well(self, job: Job, made: MadeRecord) -> JobResult:
        done = _as(DoneRecord, made)
        files = sorted(made.files, key=lambda file: file.position)
        parameters = job.request.fields() | (job.request.extra_body or {})
        parameters.pop("prompt", None)
        line = ManifestLine(
            index=job.index,
            prompt=job.request.prompt,
            parameters=parameters,
            files=files,
            usage=made.usage,
            request_id=made.meta.request_id if made.meta else None,
            key=job.key,
        )
        await self._store.commit(done, line)
        item = _item(job, made, paths=paths_of(self._folder, made.files))
        return JobResult(item=item, images=len(files), size=size_of(made.files))

    async def _end_badly(
        self,
        job: Job,
        made: MadeRecord,
        error: ElkImagesError,
        response: ImagesResponse | None = None,
        stop: BaseException | None = None,
    ) -> JobResult:
        fields = {name: getattr(made, name) for name in MadeRecord.__struct_fields__}
        attempts = made.meta.attempts if made.meta else error.attempts
        await self._store.commit(
            FailedRecord(**fields, error=write_error(error), attempts=attempts)
        )
        paths = paths_of(self._folder, made.files)
        item = _item(job, made, error=error, attempts=attempts, paths=paths, result=response)
        return JobResult(item=item, stop=stop)

    async def _lose(
        self, job: Job, made: MadeRecord, problem: OSError, response: ImagesResponse | None
    ) -> JobResult:
        """The disk takes nothing more: give what there is, and stop before more is paid for."""
        error = BatchError(
            f"The image was made, but cannot be saved: {problem.strerror}. Mend that, and start the "
            "same run again.",
            billing="billed",
        )
        error.request_id = made.meta.request_id if made.meta else None
        return await self._end_badly(job, made, error, response, stop=error)


def _as(kind: Any, record: ResponseRecord) -> Any:
    return kind(**{name: getattr(record, name) for name in ResponseRecord.__struct_fields__})


def _with(
    made: MadeRecord, files: tuple[SavedFile, ...], urls: tuple[PendingImage, ...]
) -> MadeRecord:
    return msgspec.structs.replace(made, files=made.files + files, urls=urls)


def divide(slots: Slots) -> tuple[Slots, Slots]:
    """The images that are here, and those that wait at their URLs."""
    here = [(position, image) for position, image in slots if image.content is not None]
    left = [(position, image) for position, image in slots if image.content is None]
    return here, left


def waiting(slots: Slots) -> tuple[PendingImage, ...]:
    """Where images wait."""
    return tuple(PendingImage(position, image.url or "") for position, image in slots)


def slots_of(urls: tuple[PendingImage, ...], connect: Callable[[Image], None]) -> Slots:
    """The images that wait there; `connect` teaches each to fetch its URL."""
    slots = [(where.position, Image(url=where.url)) for where in urls]
    for _, image in slots:
        connect(image)
    return slots


async def fetch(
    slots: Slots, save: Callable[[Slots], Coroutine[Any, Any, tuple[SavedFile, ...]]]
) -> tuple[tuple[SavedFile, ...], tuple[PendingImage, ...], DownloadError | None]:
    """Fetch images and `save` each; gives the files, what still waits at its URL, and why."""
    files: tuple[SavedFile, ...] = ()
    left: Slots = []
    failure: DownloadError | None = None
    for position, image in slots:
        try:
            await image.read()
        except DownloadError as error:
            failure = error
            left.append((position, image))
        else:
            files += await _shielded(save([(position, image)]))
    return files, waiting(left), failure


async def _shielded(step: Coroutine[Any, Any, T]) -> T:
    """Do a step to its end, even where the run is being cancelled."""
    with anyio.CancelScope(shield=True):
        return await step
    raise AssertionError("nobody cancels this scope")


def _hand_over(job: Job, made: ResponseRecord, response: ImagesResponse) -> JobResult:
    """The result whose images nobody saves here; the journal learns of it when the caller takes it."""
    if made.meta is not None and not hasattr(response, "meta"):
        response.meta = made.meta
    return JobResult(
        item=_item(job, made, result=response),
        images=len(response),
        size=sum(len(image.content or b"") for image in response),
        record=msgspec.structs.replace(_as(DoneRecord, made), urls=()),
    )


def _item(job: Job, made: ResponseRecord, **fields: Any) -> MapItem:
    fields.setdefault("attempts", made.meta.attempts if made.meta else 0)
    return MapItem(index=job.index, request=job.request, usage=made.usage, meta=made.meta, **fields)
