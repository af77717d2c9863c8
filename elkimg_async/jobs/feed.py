"""The events of one job in this process, and their readers.

A feed holds each image once, whatever the number of readers: a reader only has a position, and
looks up the next event after it. A reader that falls behind misses only partial images that have
been replaced by newer ones.
"""

import asyncio
import bisect
import functools
import time
from collections.abc import Callable, Iterable
from typing import Protocol, Self

from elkimg_async.errors import ElkImagesError, InvalidRequestError
from elkimg_async.image import Image
from elkimg_async.jobs.model import Job, JobCompletedImage, JobEvent, read_response
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.stream import EventIterator


class Feed:
    """The newest record of a job and its events, in order."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.readers = 0
        self.running = False
        self.events: list[JobEvent] = []
        self.closed: ElkImagesError | None = None
        self.loading: asyncio.Task[None] | None = None
        self.reading = asyncio.Lock()
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
        index = bisect.bisect_right(self.events, position, key=lambda event: event.id)
        return self.events[index] if index < len(self.events) else None

    async def changed(
        self, *, seconds: float | None = None, interrupt: "asyncio.Future[None] | None" = None
    ) -> None:
        """Wait for the next change, until `interrupt` is done, or for some seconds.

        Many viewers wait here for each event, so this uses a single future, and no tasks.
        """
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

    async def finished(self) -> Job:
        """Wait for the last state."""
        while not self.job.finished:
            if self.closed is not None:
                raise self.closed
            await self.changed()
        return self.job

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


class Feeds(Protocol):
    """Source of feeds for readers."""

    async def join(self, id: str) -> Feed:
        """Return the feed of a job, and keep it until `leave`."""
        ...

    def leave(self, feed: Feed) -> None:
        """Release a feed."""


class JobEvents(EventIterator):
    """The events of one job: those so far, then live ones.

    Use it with `async for`. `await jobs.events(id)` looks up the job first, and raises
    JobNotFoundError before anything is sent to a browser. `async with` and `aclose` release it
    early; the job continues.
    """

    resumable = True
    """Whether a browser may reconnect at no cost."""
    _usage = "async for event in jobs.events(id): …"

    def __init__(self, feeds: Feeds, id: str, after: int | str | None) -> None:
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
