"""The feeds of one process: created for runs and readers, loaded from the store, released."""

import asyncio
import time
from collections.abc import Callable, Iterable

from elkimg_async.errors import ElkImagesError, JobNotFoundError
from elkimg_async.jobs.feed import Feed
from elkimg_async.jobs.model import Job, JobEvent, read_event
from elkimg_async.jobs.store import Store


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
            feed = self._feeds[id] = Feed(id)
            feed.loading = asyncio.create_task(self._load(feed))
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
        if feed is None or feed.running or feed.loading is not None:
            return
        async with feed.reading:
            try:
                job = await self.find(id)
            except JobNotFoundError as error:
                feed.close(error)
                return
            found = await self._store.events(job, feed.position)
            if not feed.running:  # this process has not taken it over in the meantime
                feed.extend(read_event(entry, content) for entry, content in found)
                feed.update(job)

    async def close(self, error: ElkImagesError) -> None:
        """Fail every reader with `error`."""
        for feed in list(self._feeds.values()):
            feed.close(error)
            if feed.loading is not None:
                feed.loading.cancel()
                await asyncio.gather(feed.loading, return_exceptions=True)

    async def _load(self, feed: Feed) -> None:
        try:
            job = await self.find(feed.id)
            found = await self._store.events(job, 0)
            if not feed.running:  # it has not been started here in the meantime
                feed.extend(read_event(entry, content) for entry, content in found)
                feed.update(job)
                feed.loading = None
                self._drop(feed)
        except BaseException:
            if self._feeds.get(feed.id) is feed and not feed.running:
                del self._feeds[feed.id]
            raise

    def _drop(self, feed: Feed) -> None:
        if feed.readers > 0 or feed.running or feed.loading is not None:
            return
        if self._feeds.get(feed.id) is feed:
            del self._feeds[feed.id]
