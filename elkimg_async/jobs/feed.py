"""The events of jobs in this process, for any number of readers.

A feed holds each image once, whatever the number of readers: a reader only has a position, and
looks up the next event after it. A reader that falls behind misses only partial images that have
been replaced by newer ones.
"""

import asyncio
import bisect
import functools
import time
from collections.abc import Callable, Iterable

from elkimg_async.errors import ElkImagesError, JobNotFoundError
from elkimg_async.image import Image
from elkimg_async.jobs.model import Job, JobCompletedImage, JobEvent, read_event, read_response
from elkimg_async.jobs.store import Store
from elkimg_async.sansio.responses import ImagesResponse


class Feed:
    """The newest record of a job and its events, in order."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.readers = 0
        # While a job runs here, its feed is ahead of the store, and is not read from there.
        self.running = False
        # In the order of their ids: all completed images, and at most one partial image, the last.
        self.events: list[JobEvent] = []
        self.closed: ElkImagesError | None = None
        # Reads the job from the store; until it has ended, or the job runs here, `job` is not set.
        self.loading: asyncio.Task[None] | None = None
        # Two changes in a row must not be read at the same time, or the older could be last.
        self.reading = asyncio.Lock()
        # The bytes sent to browsers for an event, while several readers share them.
        self.encoded: dict[int, tuple[bytes, ...]] = {}
        self._job: Job | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def job(self) -> Job:
        """The newest record; a feed is read only after it has one."""
        assert self._job is not None
        return self._job

    @property
    def position(self) -> int:
        """The id of the newest event."""
        return self.events[-1].id if self.events else self.job.first_id

    @property
    def images(self) -> list[Image]:
        """The finished images."""
        return [event.image for event in self.events if isinstance(event, JobCompletedImage)]

    def update(self, job: Job) -> None:
        """Replace the record."""
        self._job = job
        self._notify()

    def add(self, event: JobEvent) -> None:
        """Add an event; it replaces the partial images before it."""
        self.events = [known for known in self.events if isinstance(known, JobCompletedImage)]
        self.events.append(event)
        ids = {known.id for known in self.events}
        self.encoded = {each: self.encoded[each] for each in ids & self.encoded.keys()}
        self._notify()

    def extend(self, events: Iterable[JobEvent]) -> None:
        """Add the events that are new."""
        for event in events:
            if not self.events or event.id > self.events[-1].id:
                self.add(event)

    def close(self, error: ElkImagesError) -> None:
        """Fail all waiting readers with `error`."""
        self.closed = error
        self._notify()

    def next_after(self, position: int) -> JobEvent | None:
        """Return the first event after a position."""
        # By id rather than by index, since the partial images that were replaced leave gaps.
        index = bisect.bisect_right(self.events, position, key=lambda event: event.id)
        return self.events[index] if index < len(self.events) else None

    async def changed(
        self, *, seconds: float | None = None, interrupt: "asyncio.Future[None] | None" = None
    ) -> None:
        """Wait for the next change, until `interrupt` is done, or for some seconds.

        Many viewers wait here for each event, so this uses a single future, and no tasks.
        """
        # No event can be missed between the reader's look at the feed and this registration,
        # because nothing is awaited in between.
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.add(waiting)
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiting)
        wake = functools.partial(_wake, waiting)
        if interrupt is not None:
            interrupt.add_done_callback(wake)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if timer is not None:
                timer.cancel()
            if interrupt is not None:
                interrupt.remove_done_callback(wake)

    async def finished(self) -> None:
        """Wait for the last state."""
        while not self.job.finished:
            if self.closed is not None:
                raise self.closed
            await self.changed()

    def response(self) -> ImagesResponse:
        """Return the result of the finished job, or raise the error that it recorded."""
        error = self.job.error
        if error is None:
            return read_response(self.job, self.images)
        error.images = tuple(self.images)
        error.partials = tuple(e for e in self.events if not isinstance(e, JobCompletedImage))
        raise error

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for each in waiting:
            _wake(each)


def _wake(waiting: "asyncio.Future[None]", _: object = None) -> None:
    if not waiting.done():
        waiting.set_result(None)


class FeedTable:
    """The feeds in use: of jobs that run or are read in this process.

    Args:
        store: The store from which jobs of other processes are read.
        keep: Seconds after which a finished job expires. None: never.
        check_open: Raises while readers may not join.
    """

    def __init__(self, store: Store, *, keep: float | None, check_open: Callable[[], None]) -> None:
        self._store, self._keep, self._check_open = store, keep, check_open
        self._feeds: dict[str, Feed] = {}

    def get(self, id: str) -> Feed | None:
        """Return a feed whose job is known, or None."""
        feed = self._feeds.get(id)
        return feed if feed is not None and feed.loading is None else None

    def run(self, job: Job, events: Iterable[JobEvent]) -> Feed:
        """Return the feed of a job that starts to run in this process."""
        # Readers that came first keep their feed: that of a job to be recovered is in use already.
        feed = self._feeds.get(job.id)
        if feed is None:
            feed = self._feeds[job.id] = Feed(job.id)
        feed.running, feed.loading = True, None
        feed.extend(events)
        feed.update(job)
        return feed

    def ended(self, feed: Feed) -> None:
        """Record that a job no longer runs in this process."""
        feed.running = False
        self._drop(feed)

    def forget(self, id: str) -> None:
        """Remove the feed of a deleted job; its current readers keep it."""
        self._feeds.pop(id, None)

    async def join(self, id: str) -> Feed:
        """Return the feed of a job, and keep it until `leave`.

        Raises:
            JobNotFoundError: If there is no such job.
        """
        self._check_open()
        feed = self._feeds.get(id)
        if feed is None:
            # A task of its own, because all readers that join in the meantime wait for it, and
            # must not lose it when the first of them is cancelled.
            feed = self._feeds[id] = Feed(id)
            feed.loading = asyncio.create_task(self._load(feed))
            # Marks its error as retrieved: the readers that it is raised for may have left.
            feed.loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        feed.readers += 1
        try:
            if feed.loading is not None:
                await asyncio.shield(feed.loading)
        except BaseException:
            self.leave(feed)
            raise
        return feed

    def leave(self, feed: Feed) -> None:
        """Release a feed, which is removed with its last reader unless its job runs here."""
        feed.readers -= 1
        if feed.readers < 2:
            feed.encoded = {}
        self._drop(feed)

    async def find(self, id: str) -> Job:
        """Return a job of the store.

        Raises:
            JobNotFoundError: If there is no such job, or it has expired.
        """
        job = await self._store.get(id)
        if job is None or self.is_expired(job):
            raise JobNotFoundError(
                f"There is no job {str(id)[:200]!r}; it may have been deleted or have expired."
            )
        return job

    def is_expired(self, job: Job) -> bool:
        """Return whether a finished job has expired."""
        if self._keep is None or job.finished_at is None:
            return False
        return job.finished_at + self._keep < time.time()

    async def refresh(self, id: str) -> None:
        """Read the records of another worker for a job that is followed here."""
        feed = self._feeds.get(id)
        if feed is not None and feed.loading is not None:
            await asyncio.wait({feed.loading})
        # The load may have failed, and then the feed is gone; or the job runs here by now.
        if feed is None or feed.running or feed.loading is not None:
            return
        async with feed.reading:
            try:
                await self._read(feed, feed.position)
            except JobNotFoundError as error:
                feed.close(error)

    async def close(self, error: ElkImagesError) -> None:
        """Fail every reader with `error`."""
        for feed in list(self._feeds.values()):
            feed.close(error)
            if feed.loading is not None:
                feed.loading.cancel()
                await asyncio.gather(feed.loading, return_exceptions=True)

    async def _load(self, feed: Feed) -> None:
        try:
            await self._read(feed, 0)
        except BaseException:
            # The next reader tries again, unless the job was started here in the meantime.
            if self._feeds.get(feed.id) is feed and not feed.running:
                del self._feeds[feed.id]
            raise
        feed.loading = None
        self._drop(feed)

    async def _read(self, feed: Feed, after: int) -> None:
        """Copy the record and the events after an id from the store."""
        job = await self.find(feed.id)
        found = await self._store.events(job, after)
        if not feed.running:  # it was not started here in the meantime: then the feed is newer
            feed.extend(read_event(entry, content) for entry, content in found)
            feed.update(job)

    def _drop(self, feed: Feed) -> None:
        if feed.readers > 0 or feed.running or feed.loading is not None:
            return
        if self._feeds.get(feed.id) is feed:
            del self._feeds[feed.id]
