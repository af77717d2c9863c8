"""`JobEvents`, the iterator over the events of one job."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Self

from elkimg_async.errors import InvalidRequestError
from elkimg_async.jobs.feed import Feed, FeedTable
from elkimg_async.jobs.model import Job, JobEvent
from elkimg_async.stream import EventIterator


class JobEvents(EventIterator):
    """The events of one job: those so far, then live ones.

    Use it with `async for`. `await jobs.events(id)` looks up the job first, and raises
    JobNotFoundError before anything is sent to a browser. `async with` and `aclose` release it
    early; the job continues.
    """

    resumable = True
    """Whether a browser may reconnect at no cost."""
    _usage = "async for event in jobs.events(id): …"

    def __init__(self, feeds: FeedTable, id: str, after: int | str | None) -> None:
        self.id = id
        self._feeds = feeds
        self._after = read_position(after)
        self._feed: Feed | None = None
        self._job: Job | None = None
        self._position = 0
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobEvent:
        if self._closed:
            raise StopAsyncIteration
        try:
            feed = await self._join()
            while (event := feed.next_after(self._position)) is None:
                if feed.job.finished:
                    self._end(feed)
                if feed.closed is not None:
                    raise feed.closed
                await feed.changed()
        except Exception:
            self._leave()
            raise
        self._position = event.id
        return event

    async def aclose(self) -> None:
        """Stop reading; the job continues."""
        self._leave()

    def __del__(self) -> None:
        if getattr(self, "_feed", None) is not None:
            self._leave()

    @property
    def job(self) -> Job | None:
        """The newest record of the job; None before the events are opened."""
        return self._feed.job if self._feed else self._job

    def share(
        self, event: JobEvent, encode: Callable[[JobEvent], Iterable[bytes]]
    ) -> Iterable[bytes]:
        """Return the chunks of an event, encoded once for all readers of the job at this time."""
        feed = self._feed
        if feed is None or feed.readers < 2:
            return encode(event)
        chunks = feed.encoded.get(event.id)
        if chunks is None:
            chunks = tuple(encode(event))
            if feed.next_after(event.id - 1) is event:
                feed.encoded[event.id] = chunks
        return chunks

    @property
    def ready(self) -> bool | None:
        """Whether the next step of the iteration does not wait for the job.

        None if it may wait for something else: the record of the job, or an image that is a URL.
        """
        feed = self._feed
        if feed is None:
            return None
        event = feed.next_after(self._position)
        if event is None:
            return feed.job.finished or feed.closed is not None
        return True if event.image.content is not None else None

    async def changed(
        self, *, seconds: float | None, interrupt: "asyncio.Future[None] | None"
    ) -> None:
        """Wait until `ready` is no longer False, until `interrupt`, or for some seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.ready is False and self._feed is not None:
            remaining = None if deadline is None else deadline - time.monotonic()
            if (remaining is not None and remaining <= 0) or (interrupt and interrupt.done()):
                return
            await self._feed.changed(seconds=remaining, interrupt=interrupt)

    @property
    def complete(self) -> bool:
        """Whether all events and the end of the job had already been received at `after`."""
        feed = self._feed
        return feed is not None and feed.job.finished and self._position == feed.job.last_id

    async def _open(self) -> Self:
        if not self._closed:
            await self._join()
        return self

    async def _join(self) -> Feed:
        if self._feed is None:
            self._feed = await self._feeds.join(self.id)
            self._position = start_of(self._feed.job, self._after)
        return self._feed

    def _end(self, feed: Feed) -> None:
        """End the iteration, with the error of a failed job unless that was received before."""
        if self._position != feed.job.last_id:
            self._position = feed.job.last_id
            if feed.job.failure is not None:
                feed.response()
        raise StopAsyncIteration

    def _leave(self) -> None:
        self._closed = True
        feed, self._feed = self._feed, None
        if feed is not None:
            self._job = feed.job
            self._feeds.leave(feed)


def read_position(after: int | str | None) -> int | None:
    """Return the event id that `after` means; None means the start.

    Raises:
        InvalidRequestError: If it is not an event id.
    """
    if after is None or after == "":
        return None
    if isinstance(after, str) and after.isdecimal() and after.isascii() and len(after) < 20:
        return int(after)
    if isinstance(after, int) and not isinstance(after, bool):
        return after
    raise InvalidRequestError(
        f"after must be the id of an event, not {str(after)[:40]!r}.", param="after"
    )


def start_of(job: Job, after: int | None) -> int:
    """Return the position to read from; the id of another job's event is ignored."""
    return after if after is not None and job.owns(after) else job.first_id
