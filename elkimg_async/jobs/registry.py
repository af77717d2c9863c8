"""`ImageJobs`, which starts jobs, lets any number of readers follow them, and ends them."""

import asyncio
import math
import time
from collections.abc import Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from elkimg_async.client import AsyncImages
from elkimg_async.config import IdempotencyMode
from elkimg_async.errors import ConfigurationError, JobConflictError, StoreError
from elkimg_async.hints import AsyncOnly
from elkimg_async.hooks import logger
from elkimg_async.jobs import model
from elkimg_async.jobs.events import JobEvents
from elkimg_async.jobs.feed import Feed, FeedTable
from elkimg_async.jobs.memory import MemoryStore
from elkimg_async.jobs.model import Job, JobEvent, read_event
from elkimg_async.jobs.options import read_options
from elkimg_async.jobs.request import Prepared, check_id, prepare
from elkimg_async.jobs.run import JobRun
from elkimg_async.jobs.start import JobStart
from elkimg_async.jobs.store import MultiWorkerStore, Store
from elkimg_async.jobs.workers import Coordinator
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.tasks import run_to_end
from elkimg_async.types import Images

T = TypeVar("T")

_MAX_SWEEP = 60.0  # seconds between two searches for expired jobs, at most
_CLOSED = "These jobs are closed; create new ImageJobs."


class ImageJobs(JobStart, AsyncOnly):
    """Image generations that outlive the request that started them.

        async with ImageJobs(client, store=DirectoryStore("images")) as jobs:
            job = await jobs.start("a red fox", id="order-17", partial_images=2)
            async for event in jobs.events(job.id):
                ...
            result = await jobs.result(job.id)

    Args:
        client: Sends the requests; it is not closed here, and must stay open longer.
        store: Stores jobs, events and images. None: a `MemoryStore`.
        keep: Seconds for which a finished job is kept. None: until it is deleted.
        grace: Seconds that closing waits for running jobs, because they are paid for. None: the
            client's total time limit for a batch call.
        concurrency: How many jobs run at once; the others are `queued`. None: as many as the
            client's `Limits(max_concurrency=…)` allows.

    Raises:
        ConfigurationError: If an argument is invalid.
    """

    _usage = "async with ImageJobs(client) as jobs: …"

    def __init__(
        self,
        client: AsyncImages,
        *,
        store: Store | None = None,
        keep: float | None = 24 * 3600.0,
        grace: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        if not isinstance(client, AsyncImages):
            raise ConfigurationError(f"client must be an AsyncImages, not {type(client).__name__}.")
        if store is not None and not hasattr(store, "shared"):
            raise ConfigurationError(
                f"store must be one such as DirectoryStore(folder), not {type(store).__name__}."
            )
        _check_seconds("keep", keep, 0)
        _check_seconds("grace", grace, -1)
        if concurrency is not None and not (isinstance(concurrency, int) and concurrency > 0):
            raise ConfigurationError("concurrency must be a positive whole number, or None.")
        settings = client._settings  # noqa: SLF001
        self._client = client
        self._store: Store = MemoryStore() if store is None else store
        self._shared_store = cast("MultiWorkerStore", self._store) if self._store.shared else None
        self._keep = keep
        self._grace: float = settings.timeout.limits(stream=False).total if grace is None else grace
        self._strict = settings.validate == "strict"
        self._idempotency: IdempotencyMode = settings.idempotency
        # The client would limit them as well, but its total time includes the wait for a turn,
        # which may take hours for a job.
        self._slots = asyncio.Semaphore(concurrency or settings.limits.max_concurrency or 2**31)
        self._feeds = FeedTable(self._store, keep=keep, check_open=self._check_open)
        self._runs: dict[str, JobRun] = {}
        self._coordinator: Coordinator | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._state = "new"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit)):
            # The first Ctrl-C is a cancellation; this is the second one.
            self._state = "closed"
            await self._abort()
        else:
            await self.aclose()

    async def open(self) -> None:
        """Open the store, and recover the jobs of processes that have ended.

        Raises:
            StoreError: If the store cannot be opened.
            ConfigurationError: If it was opened before.
        """
        if self._state != "new":
            raise ConfigurationError("ImageJobs can be opened once; create new ones.")
        self._state = "opening"
        try:
            await self._store.open(self._keep)
            self._state = "open"  # recovered jobs run, and may be followed, from here on
            if self._shared_store is not None:
                self._coordinator = Coordinator(
                    self._shared_store,
                    runs=self._runs.__contains__,
                    recover=self._recover,
                    cancel=self._cancel_here,
                    refresh=self._feeds.refresh,
                )
                await self._coordinator.open()
            else:  # no other process uses the store, so every unfinished job is an orphan
                for job in await self._store.jobs():
                    if not job.finished:
                        await self._recover_if_readable(job)
        except BaseException:
            self._state = "closed"
            await self._abort()
            raise
        if self._keep is not None:
            self._sweeper = asyncio.create_task(self._sweep(self._keep))

    async def aclose(self) -> None:
        """Wait up to `grace` seconds for running jobs, then close everything; idempotent.

        Jobs that are still queued remain so in the store. Cancelling this ends it at once; the
        store is then consistent, and a later process continues from there. An image that could not
        be stored by then, because the disk is full, is written to a temporary file that is named
        in the log.
        """
        if self._state == "closed":
            return
        self._state = "closing"
        try:
            # Only what was sent is worth waiting for; the others would begin to cost money now.
            running = [run.task for run in self._runs.values() if run.sent]
            for run in self._runs.values():
                if not run.sent:
                    run.stop("abort")
            if running:
                await asyncio.wait(running, timeout=_timeout(self._grace))
        finally:
            self._state = "closed"
            await self._abort()

    async def _abort(self) -> None:
        """Stop everything now."""
        for run in self._runs.values():
            run.stop("abort")
        await run_to_end(self._close())  # every step of it is bounded

    async def _close(self) -> None:
        # The runs first, so that readers still receive what they recorded; then the readers, who
        # would wait forever; the store last, since closing it releases the jobs of this worker.
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*(run.task for run in self._runs.values()), return_exceptions=True)
        await self._feeds.close(ConfigurationError(_CLOSED))
        if self._coordinator is not None:
            await self._coordinator.aclose()
        await self._store.aclose()

    # --- jobs ---------------------------------------------------------------

    async def _start(
        self, prompt: Any, id: str | None, image: Images | None, options: Mapping[str, Any]
    ) -> Job:
        self._check_open()
        name = check_id(id)
        prepared = await prepare(
            name, prompt, image, options, strict=self._strict, idempotency=self._idempotency
        )
        # Single flight: of many starts of one id the store accepts one, which alone runs it. A job
        # that is followed here is known without reading the store.
        known = self._feeds.get(name)
        job = await finish(self._create(prepared)) if known is None else known.job
        if job.fingerprint != prepared.job.fingerprint:
            raise JobConflictError(
                f"The id {name!r} belongs to a job with other parameters; choose another id, or "
                "delete that job first."
            )
        return job

    async def _create(self, prepared: Prepared) -> Job:
        """Store a job and run it; never cancelled halfway, so that a stored job is always run."""
        stored = await self._store.create(prepared.job, prepared.contents)
        # A job that is stored while the registry closes stays `queued` for a later process.
        if stored is prepared.job and self._state == "open":
            self._run(stored, prepared.options)
        return stored

    def events(self, id: str, after: int | str | None = None) -> JobEvents:
        """Return the events of a job: those so far, then live ones.

        Any number of readers may follow a job; a slow one misses partial images that have been
        replaced by newer ones. The job continues when a reader leaves.

        Args:
            id: The id of the job.
            after: The `id` of the last event received, or a browser's `Last-Event-ID`. None: all.

        Raises:
            InvalidRequestError: If `after` is not an event id.
            JobNotFoundError: If there is no such job; raised by the first step of the iteration.
        """
        return JobEvents(self._feeds, id, after)

    async def result(self, id: str) -> ImagesResponse:
        """Wait for the job, and return what the call would have returned, or raise its error.

        Raises:
            JobNotFoundError: If there is no such job.
            JobCancelledError: If the job was cancelled.
            JobLostError: If the process that ran it ended.
            ElkImagesError: If the call failed.
        """
        feed = await self._feeds.join(id)
        try:
            await feed.finished()
            return feed.response()
        finally:
            self._feeds.leave(feed)

    async def get(self, id: str) -> Job:
        """Return a job as it is now.

        Raises:
            JobNotFoundError: If there is no such job.
        """
        self._check_open()
        return await self._feeds.find(id)

    async def list(self) -> "list[Job]":
        """Return all jobs, oldest first."""
        self._check_open()
        return [job for job in await self._store.jobs() if not self._feeds.is_expired(job)]

    async def cancel(self, id: str) -> Job:
        """Close the connection of a job, and return it in its last state.

        A finished job is unchanged. A request that was already sent may still be billed.

        Raises:
            JobNotFoundError: If there is no such job.
        """
        feed = await self._feeds.join(id)
        try:
            if not feed.job.finished:
                if not self._cancel_here(id) and self._shared_store is not None:
                    await self._shared_store.request_cancel(id)
                await feed.finished()
            return feed.job
        finally:
            self._feeds.leave(feed)

    async def delete(self, id: str) -> None:
        """Delete a finished job with its images.

        Raises:
            JobNotFoundError: If there is no such job.
            JobConflictError: If the job has not finished; cancel it first.
        """
        job = await self.get(id)
        if not job.finished:
            raise JobConflictError(f"The job {id!r} is {job.state}; cancel it first.")
        # The last record is written, but its task may not have ended, and while it is among the
        # runs, a new job with the same id would not be started.
        run = self._runs.get(id)
        if run is not None:
            await asyncio.wait([run.task])
        await self._store.delete(job)
        self._feeds.forget(id)

    # --- running ------------------------------------------------------------

    async def _recover(self, job: Job) -> None:
        """Continue an unfinished job whose process has ended, or record that it is lost."""
        events = await self._store.events(job, 0)
        decided = model.recover(
            job,
            [entry for entry, _ in events],
            replay=self._idempotency == "replay",
            now=time.time(),
        )
        if decided.finished:
            await self._store.update(decided)
            await self._feeds.refresh(job.id)
            return
        self._run(
            decided,
            read_options(decided.options),
            [read_event(entry, content) for entry, content in events],
        )

    async def _recover_if_readable(self, job: Job) -> None:
        try:
            await self._recover(job)
        except StoreError as error:
            logger.warning("an unfinished job cannot be recovered: %s", error.message)

    def _cancel_here(self, id: str) -> bool:
        """Cancel a job that runs in this process; return whether it does."""
        run = self._runs.get(id)
        if run is not None:
            run.stop("cancel")
        return run is not None

    def _run(self, job: Job, options: dict[str, Any], events: Iterable[JobEvent] = ()) -> None:
        # A worker also finds its own jobs among the orphans, for those whose run failed here.
        if job.id in self._runs:
            return
        feed = self._feeds.run(job, events)
        run = JobRun(
            self._client,
            self._store,
            feed,
            options=options,
            replay=self._idempotency == "replay",
            slots=self._slots,
        )
        self._runs[job.id] = run
        run.task.add_done_callback(lambda _: self._ended(feed, run))

    def _ended(self, feed: Feed, run: JobRun) -> None:
        # The id may belong to a newer job by now.
        if self._runs.get(feed.id) is run:
            del self._runs[feed.id]
        self._feeds.ended(feed)

    # --- internals ----------------------------------------------------------

    def _check_open(self) -> None:
        if self._state == "new":
            raise ConfigurationError(
                "Open ImageJobs first: async with ImageJobs(client) as jobs: …"
            )
        if self._state != "open":
            raise ConfigurationError(_CLOSED)

    async def _sweep(self, keep: float) -> None:
        """Delete expired jobs periodically."""
        while True:
            await asyncio.sleep(min(_MAX_SWEEP, max(keep / 4, 0.05)))
            try:
                for job in await self._store.jobs():
                    if self._feeds.is_expired(job):
                        await self._store.delete(job)
            except StoreError as error:
                logger.warning("expired jobs could not be deleted: %s", error.message)


async def finish(step: Coroutine[Any, Any, T]) -> T:
    """Run a step to completion, even if the caller is cancelled in the meantime."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


def _timeout(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def _check_seconds(name: str, value: object, above: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > above:
        raise ConfigurationError(f"{name} must be a positive number of seconds, or None.")
