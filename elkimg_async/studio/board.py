"""`Board`: what every open page shows, and what has changed since it last looked.

Each job has the number of its latest change. A page that knows everything up to a number receives
the jobs with higher ones in their newest state, so a slow page misses intermediate states only, and
a page that reconnects continues where it was. Nothing is stored for a page.
"""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from elkimg_async import hooks
from elkimg_async.errors import ElkImagesError, StoreError
from elkimg_async.jobs import DirectoryStore, ImageJobs, Job
from elkimg_async.sansio.pricing import reported_cost
from elkimg_async.studio.library import file_name, type_of

MAX_DELETED = 1_000
"""How many deleted jobs are remembered for pages that reconnect."""

current_job: contextvars.ContextVar[str] = contextvars.ContextVar("current_job")
"""The id of the job that is started or run in this context."""


class Change(msgspec.Struct, frozen=True):
    """A message for the pages: `jobs` (all of them), `job` or `deleted`."""

    number: int
    event: str
    data: dict[str, Any]


class Board:
    """The jobs of the studio as pages see them.

    Args:
        jobs: The jobs.
        store: Their store.
        max_attempts: How often a request is tried.
    """

    def __init__(self, jobs: ImageJobs, store: DirectoryStore, *, max_attempts: int) -> None:
        self._jobs, self._store = jobs, store
        self._max_attempts = max_attempts
        self._name = f"{time.time_ns():x}"  # numbers of another process mean nothing here
        self._number = 0
        # The number of each job's latest change. Both are in the order of the numbers, so that what
        # is newer than a position is found from the end, at the cost of what is found.
        self._changed: dict[str, int] = {}
        self._deleted: dict[str, int] = {}
        self._forgotten = 0  # the highest number of a deletion that is no longer in `_deleted`
        self._retries: dict[str, dict[str, Any]] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self.closed = False

    @property
    def running(self) -> int:
        """The number of unfinished jobs."""
        return len(self._watchers)

    async def open(self) -> None:
        """Follow the jobs of an earlier process that are unfinished."""
        for job in await self._store.jobs():
            self._mark(job.id)
            if not job.finished:
                self.watch(job.id)

    async def aclose(self) -> None:
        """Stop following jobs, and end what pages receive."""
        self.closed = True
        self._notify()
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)

    def watch(self, id: str) -> None:
        """Report every change of a job until it has finished."""
        self._mark(id)
        if id not in self._watchers:
            watcher = self._watchers[id] = asyncio.create_task(self._watch(id))
            watcher.add_done_callback(lambda _: self._watchers.pop(id, None))

    def remove(self, id: str) -> None:
        """Report that a job has been deleted."""
        self._changed.pop(id, None)
        self._number += 1
        self._deleted[id] = self._number
        if len(self._deleted) > MAX_DELETED:
            oldest = next(iter(self._deleted))
            self._forgotten = self._deleted.pop(oldest)
        self._notify()

    def observe(self, record: hooks.Record) -> None:
        """Receive what happens to calls; a hook of the client."""
        job_id = current_job.get("")
        if not job_id:
            return
        if isinstance(record, hooks.RetryScheduled):
            self._retries[job_id] = {
                "at": time.time() + record.delay,
                "attempt": record.attempt + 1,
                "of": self._max_attempts,
            }
            self._mark(job_id)
        elif isinstance(record, hooks.AttemptStarted):
            self._retries.pop(job_id, None)
            # The first attempt may start before `watch`, when no page knows the job yet.
            if job_id in self._changed:
                self._mark(job_id)

    # --- for pages ----------------------------------------------------------

    def position(self, text: str | None) -> int | None:
        """Return the number in a `Last-Event-ID`; None if this board cannot continue from it."""
        name, _, number = (text or "").partition("-")
        if name != self._name or not number.isascii() or not number.isdecimal():
            return None
        position = int(number[:18])  # longer ones are none of ours, and slow to convert
        return position if self._forgotten <= position <= self._number else None

    def id_of(self, change: Change) -> str:
        return f"{self._name}-{change.number}"

    async def changes(self, position: int | None) -> list[Change]:
        """Return what has changed since a position; None means everything."""
        # This store returns without waiting, so the jobs and the numbers are of the same moment.
        jobs = {job.id: job for job in await self._store.jobs()}
        if position is None:
            data = {"now": time.time(), "jobs": [self.describe(job) for job in jobs.values()]}
            return [Change(self._number, "jobs", data)]
        found = [
            Change(number, "job", self.describe(jobs[name]))
            for name, number in _newer(self._changed, position)
            if name in jobs
        ]
        found += [
            Change(number, "deleted", {"id": name})
            for name, number in _newer(self._deleted, position)
        ]
        return sorted(found, key=lambda change: change.number)

    async def wait(self, position: int, seconds: float) -> bool:
        """Wait until something has changed; return False if nothing has within `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._number <= position and not self.closed:
                    await self._news.wait()
        return self._number > position or self.closed

    def describe(self, job: Job) -> dict[str, Any]:
        """Return a job as pages show it."""
        images = [(entry, file) for entry, file in self._store.entries(job) if file]
        completed = [(entry, file) for entry, file in images if entry.completed]
        partials = [entry for entry, _ in images if not entry.completed]
        return {
            "id": job.id,
            "state": job.state,
            "prompt": job.prompt,
            "parameters": job.parameters,
            "edit": job.edit,
            "count": job.wanted,
            "created_at": job.created_at,
            "sent_at": job.sent_at,
            "finished_at": job.finished_at,
            "usage": job.usage,
            **cost_of(job),
            "retry": None if job.finished else self._retries.get(job.id),
            "error": describe_error(job),
            "images": [
                {
                    "number": entry.id - job.first_id,
                    "name": file_name(job, index, file),
                    "type": type_of(file),
                    "size": entry.fields.get("size"),
                }
                for index, (entry, file) in enumerate(completed)
            ],
            "partial": partials[-1].id - job.first_id if partials else None,
            "previews": partials[-1].fields.get("partial_image_index", 0) + 1 if partials else 0,
            "inputs": [
                {"param": each.param, "sha256": each.sha256} for each in job.inputs if each.sha256
            ],
        }

    # --- internals ----------------------------------------------------------

    async def _watch(self, id: str) -> None:
        try:
            async for _ in self._jobs.events(id):
                self._mark(id)
        except ElkImagesError:  # the job's own error, which its record has
            pass
        self._retries.pop(id, None)
        # The end of a job is no event of its own. A deleted job must not appear again.
        with contextlib.suppress(StoreError):  # closed, together with the jobs
            if await self._store.get(id) is not None:
                self._mark(id)

    def _mark(self, id: str) -> None:
        self._number += 1
        self._changed.pop(id, None)  # or it would keep its place in the order
        self._changed[id] = self._number
        self._notify()

    def _notify(self) -> None:
        # Each event is set once and replaced, so a page that has looked before waits for the next.
        self._news.set()
        self._news = asyncio.Event()


def _newer(numbers: dict[str, int], position: int) -> Iterator[tuple[str, int]]:
    for name, number in reversed(numbers.items()):
        if number <= position:
            return
        yield name, number


def describe_error(job: Job) -> dict[str, Any] | None:
    """Return the error of a job in the server's own words, which the owner may read."""
    error: Any = job.error
    if error is None:
        return None
    names = ("message", "billing", "code", "status", "param", "request_id", "idempotency_key")
    found = {name: getattr(error, name, None) for name in names}
    return {"type": type(error).__name__, **{k: v for k, v in found.items() if v is not None}}


def cost_of(job: Job) -> dict[str, str | None]:
    """Return the cost of a job and its currency; None if unknown."""
    meta = (job.result or {}).get("meta") or {}
    if (cost := meta.get("cost")) is not None:
        return {"cost": str(cost), "currency": meta.get("currency") or "USD"}
    reported = reported_cost(job.usage)
    if reported is None:
        return {"cost": None, "currency": None}
    return {"cost": str(reported.amount), "currency": reported.currency}
