"""`ServerSentEvents`, the relay of image events to a browser."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, Self

import anyio

from elkimg_async.errors import ConfigurationError, JobNotFoundError
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.web.messages import (
    DONE,
    as_job,
    close,
    end_id,
    failed,
    iterate,
    read,
    write_end,
    write_event,
)

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
)
"""The response headers of a relay: nothing in between may cache, compress or delay the events."""

_START = b"retry: 2147483647\n"  # in milliseconds; the most that every browser accepts
_RESUMABLE = b"retry: 1000\n"  # a reconnect to a job costs nothing
_PING = b": ping\n"


class ServerSentEvents:
    """The bytes that relay a stream of images, for any framework's streaming response.

        async for chunk in ServerSentEvents(client.generate(prompt, stream=True)):
            ...

    Send them with `HEADERS`, and always call `aclose` at the end. No `Exception` of the stream is
    raised: it becomes an `error` event, and is logged in full by the logger `elkimg_async`.

    Args:
        events: The events of a job; or an `ImageStream`, open or not; or any async iterable of its
            events, such as a generator of yours that modifies them. It is closed at the end.
        heartbeat: Seconds of silence after which a comment line is sent, so that nothing in between
            closes the connection as idle. None: no heartbeats.
        pass_urls: Whether an image that is a URL is passed on as one, for the browser to download,
            which reveals its origin. Otherwise it is downloaded here and sent as base64.

    Raises:
        ConfigurationError: If `heartbeat` is not a positive number.
        StreamStateError: If the stream is already being iterated elsewhere.
    """

    def __init__(
        self,
        events: AsyncIterable[ImageEvent],
        *,
        heartbeat: float | None = 15.0,
        pass_urls: bool = False,
    ) -> None:
        if heartbeat is not None and not heartbeat > 0:
            raise ConfigurationError("heartbeat must be a positive number of seconds, or None.")
        self._events = iterate(events)
        self._heartbeat, self._pass_urls = heartbeat, pass_urls
        plain = as_job(self._events) is None
        # The rest of a message that has begun. It is sent to its end before anything else, since a
        # heartbeat in the middle of a line would become part of the image.
        self._chunks: Iterator[bytes] = iter([_START if plain else _RESUMABLE])
        # The next event is read in a task that outlives heartbeats: cancelling the read would end
        # the stream.
        self._step: asyncio.Task[ImageEvent | None] | None = None
        self._disconnected: Callable[[], Awaitable[object]] | None = None
        self._watch: asyncio.Task[None] | None = None
        # `_ended`: nothing follows the present message. `_closed`: everything has been released.
        self._ended = self._closed = False

    def stop_when(self, disconnected: Callable[[], Awaitable[object]]) -> Self:
        """End at once when `disconnected()` returns, because the browser has disconnected."""
        self._disconnected = disconnected
        return self

    async def look_up(self) -> Literal[200, 204, 404]:
        """Look up the job, if it is one, before a response begins; return the response's status.

        A plain stream is not opened: its failures become events.
        """
        events = as_job(self._events)
        if events is None:
            return 200
        try:
            await events
        except JobNotFoundError:
            return 404
        except Exception:  # noqa: BLE001 - it is raised again by the first step, and relayed
            return 200
        # The HTML standard, 9.2: 204 tells an EventSource to stop reconnecting.
        return 204 if events.complete else 200

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = next(self._chunks, None)
        return await self._wait() if chunk is None else chunk

    async def aclose(self) -> None:
        """Close the stream and its connection; calling it again does nothing."""
        self._ended = True
        self._chunks = iter(())
        self._disconnected = None  # no further watch is started
        if self._closed:
            return
        tasks = [task for task in (self._step, self._watch) if task is not None]
        self._step = self._watch = None
        # A cancelled anyio scope around this, as in a framework's task group, would cancel each
        # await here too, and leave the connection open.
        with anyio.CancelScope(shield=True):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await close(self._events)
        self._closed = True

    def __del__(self) -> None:
        # Some frameworks abandon an iterator without closing it. Nothing can be awaited here, but a
        # cancelled read closes its stream by itself.
        tasks = getattr(self, "_step", None), getattr(self, "_watch", None)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            for task in filter(None, tasks):
                task.cancel()

    async def _wait(self) -> bytes:
        """Return the next chunk, or a heartbeat, as soon as there is one.

        A job is waited for by `JobEvents.changed`, which needs no task for each event and viewer.
        Anything else is read in the task `_step`; while there is one, it is the only reader, since
        an async iterator must not be advanced twice at a time.
        """
        if self._ended:
            await self.aclose()
            raise StopAsyncIteration
        try:
            ready = await self._job_is_ready()
            if ready is None:
                step = self._start_step()
                watch = self._start_watch()
                await asyncio.wait(
                    {step, watch} if watch else {step},
                    timeout=self._heartbeat,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                ready = step.done()
        except BaseException:  # the framework has cancelled the response
            await self.aclose()
            raise
        if self._watch is not None and self._watch.done():
            await self.aclose()
            raise StopAsyncIteration
        if not ready:
            return _PING  # the task goes on, and the next call waits for it again
        started, self._step = self._step, None
        return await self._write(started or read(self._events, self._pass_urls))

    async def _job_is_ready(self) -> bool | None:
        """Wait for a job; return as `JobEvents.ready`, or None for other events."""
        job = as_job(self._events)
        if job is None or self._step is not None:
            return None
        if job.ready is not False:
            await asyncio.sleep(0)  # lets a lost connection be noticed between two events
            return job.ready
        await job.changed(seconds=self._heartbeat, interrupt=self._start_watch())
        return job.ready

    async def _write(self, step: Awaitable[ImageEvent | None]) -> bytes:
        """Return the first chunk of what a step returned or raised."""
        try:
            event = await step
            self._ended = event is None
            if event is None:
                return write_end(DONE.encode(), id=end_id(self._events))
            self._chunks = write_event(event, self._events)
            return next(self._chunks)
        except Exception as error:  # noqa: BLE001
            self._ended = True
            return write_end(failed(error), id=end_id(self._events), event=b"error")

    # The tasks do not hold this object, so that it is deleted when it is abandoned.

    def _start_step(self) -> "asyncio.Task[ImageEvent | None]":
        if self._step is None:
            self._step = asyncio.create_task(read(self._events, self._pass_urls))
        return self._step

    def _start_watch(self) -> "asyncio.Task[None] | None":
        if self._watch is None and self._disconnected is not None:
            self._watch = asyncio.create_task(_until(self._disconnected))
        return self._watch


async def _until(disconnected: Callable[[], Awaitable[object]]) -> None:
    await disconnected()
