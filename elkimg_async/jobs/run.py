"""The call behind one job, from its request to its last record."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from elkimg_async.batch.executor import send_while_in_flight
from elkimg_async.client import AsyncImages
from elkimg_async.errors import DownloadError, ElkImagesError, JobError, StoreError
from elkimg_async.files import write_temporary
from elkimg_async.hooks import logger
from elkimg_async.image import Image
from elkimg_async.jobs import model
from elkimg_async.jobs.feed import Feed
from elkimg_async.jobs.model import Job
from elkimg_async.jobs.request import arguments
from elkimg_async.jobs.store import FencedError, Store
from elkimg_async.media_types import EXTENSIONS, media_type_of
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse

RECORD_TIMEOUT = 1.0
"""Seconds that recording the last state may take after an abort."""
_PAUSES = (0.1, 5.0)  # seconds between two attempts to write to a store that fails: first, longest

Stop = Literal["cancel", "abort"]


class JobRun:
    """One job being run.

    Args:
        client: Sends the request.
        store: Records everything before readers see it.
        feed: The events for the readers of this process.
        options: Options of the call that are not part of the request.
        replay: Whether the job may be sent again after the end of this process.
        slots: Limits how many jobs run at once.
    """

    def __init__(
        self,
        client: AsyncImages,
        store: Store,
        feed: Feed,
        *,
        options: dict[str, Any],
        replay: bool,
        slots: asyncio.Semaphore,
    ) -> None:
        self._client, self._store, self._feed = client, store, feed
        self._options, self._replay, self._slots = options, replay, slots
        # Images that an earlier run of the same job has recorded, and that may arrive again.
        self._known: list[bytes | None] = []
        self._next_id = 0
        self._stop: Stop | None = None
        self._begun = False
        # What has arrived and is being stored; `_stopped` stores it when the task is cancelled.
        self._pending: deque[ImageEvent] = deque()
        # The images of all events, by which those that only an error carries are recognized.
        self._received: list[Image] = []
        self._not_downloaded: DownloadError | None = None
        self._last: Job | None = None
        self.task = asyncio.create_task(self._run())

    @property
    def sent(self) -> bool:
        """Whether the request may have been sent, and so is paid for."""
        return self._feed.job.state != "queued"

    def stop(self, reason: Stop) -> None:
        """Close the upstream connection: for good, or to leave the job to a later process."""
        # The first reason counts: a job that was cancelled by its user is not left to a later
        # process because the registry closes at the same time.
        if self._stop is None:
            self._stop = reason
            if self._begun:  # a task that is cancelled before its first step would record nothing
                self.task.cancel()

    async def _run(self) -> None:
        self._begun = True
        try:
            try:
                await self._execute()
            except asyncio.CancelledError:
                await self._stopped()
        except FencedError:
            logger.warning("a job was taken over by another worker, and was stopped here")
        except StoreError as error:
            logger.error("a job could not be recorded: %s", error.message)

    async def _execute(self) -> None:
        if self._stop is not None:
            raise asyncio.CancelledError
        async with self._slots:
            # Recorded before the request is sent: a job that is found `queued` after a crash is
            # sent again even if the server does not replay idempotency keys.
            await self._save(model.send(self._feed.job, time.time()))
            await self._send_and_record()

    async def _send_and_record(self) -> None:
        """Send the request, record its events, and then the job in its last state."""
        try:
            response = await self._send()
        except (FencedError, StoreError):
            raise  # not the failure of the call: its record cannot be written
        except ElkImagesError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a bug of ours, or of a hook's or a session's
            logger.error("a job failed unexpectedly", exc_info=error)
            failure = JobError(f"The job failed unexpectedly: {type(error).__name__}.")
            failure.billing = "unknown"
        else:
            self._last = model.complete(self._feed.job, response, time.time())
            await self._save(self._last)
            return
        # Set first, so that a job stopped from here on still fails with this error.
        self._last = model.fail(self._feed.job, failure, time.time())
        await self._record(*self._events_of(failure))
        await self._save(self._last)

    async def _stopped(self) -> None:
        """Record why the job was stopped, with everything that had arrived before."""
        if self._feed.job.finished:
            return
        try:
            # The registry waits for this when it closes, and with it the user who pressed Ctrl-C.
            async with asyncio.timeout(RECORD_TIMEOUT):
                while self._pending:
                    await self._keep(self._pending[0])
                last = self._last or self._decide()
                if last is not None:
                    await self._save(last)
        except (TimeoutError, StoreError):
            logger.warning("the end of a job could not be recorded in time")
            for event in self._pending:
                if isinstance(event, CompletedImage):
                    _rescue(self._feed.id, event.image.content)

    def _decide(self) -> Job | None:
        """Return the last state of a stopped job; None leaves it to a later process."""
        job, images, now = self._feed.job, self._feed.images, time.time()
        if job.state == "running":
            # As a later process would decide: all images may have arrived although the response
            # has not ended, and then the job is done even if it was cancelled.
            events = [model.write_event(event, event.id) for event in self._feed.events]
            decided = model.recover(job, events, replay=self._replay, now=now)
            if decided.state == "done" or (self._stop == "abort" and decided.finished):
                return decided
        return model.cancel(job, len(images), now) if self._stop == "cancel" else None

    # --- the call -----------------------------------------------------------

    async def _send(self) -> ImagesResponse:
        job = self._feed.job
        # Read from the store rather than passed on by `start`, as after a restart.
        contents = await self._retry(lambda: self._store.inputs(job))
        earlier = [event for event in self._feed.events if isinstance(event, CompletedImage)]
        self._known = [event.image.content for event in earlier]
        self._next_id = self._feed.position + 1
        return await send_while_in_flight(lambda: self._call(job, contents), repeated=job.runs > 1)

    async def _call(self, job: Job, contents: list[bytes]) -> ImagesResponse:
        positional, options = arguments(job, contents)
        options |= self._options
        if job.idempotency_key is not None:
            options["extra_headers"] = {
                **(options.get("extra_headers") or {}),
                "Idempotency-Key": job.idempotency_key,
            }
        method: Any = self._client.edit if job.edit else self._client.generate
        if not job.stream:
            response: ImagesResponse = await method(*positional, **options)
            await self._record(*(_completed(job, image, response) for image in response))
        else:
            async with method(*positional, stream=True, **options) as stream:
                async for event in stream:
                    await self._record(event)
                response = await stream.result()
        # Only now, when nothing else can arrive: the other images are paid for as well.
        if self._not_downloaded is not None:
            raise self._not_downloaded
        return response

    def _events_of(self, error: ElkImagesError) -> list[ImageEvent]:
        """Return the images that arrived with an error, and in no event, as events.

        Completed images come last, since they replace partial ones.
        """
        job = self._feed.job
        partials = [each for each in error.partials if not self._has_received(each.image)]
        images = [image for image in error.images if not self._has_received(image)]
        return [*partials, *(_completed(job, image) for image in images)]

    def _has_received(self, image: Image) -> bool:
        return any(image is received for received in self._received)

    async def _record(self, *events: ImageEvent) -> None:
        """Store events, and deliver each to the readers."""
        self._pending.extend(events)
        self._received.extend(event.image for event in events)
        while self._pending:
            event = self._pending[0]
            try:
                # URLs expire, so what is stored is the image itself.
                await event.image.read()
            except DownloadError as error:
                if isinstance(event, CompletedImage):
                    self._not_downloaded = error
            await self._keep(event)
            # Readers that wait see each event, even when several come at once.
            await asyncio.sleep(0)

    async def _keep(self, event: ImageEvent) -> None:
        """Store and deliver the first pending event, unless there is no need to."""
        completed, content = isinstance(event, CompletedImage), event.image.content
        if completed and content is not None and content in self._known:
            self._known.remove(content)  # recorded by the earlier run that this one repeats
        elif completed or content is not None:  # without its bytes, a preview is worth nothing
            # The store first: an event that a browser has seen can be resumed after a crash.
            entry = model.write_event(event, self._next_id)
            await self._retry(lambda: self._store.append(self._feed.job, entry, content))
            self._feed.add(model.number(event, entry.id))
            self._next_id += 1
        self._pending.popleft()

    # --- the store ----------------------------------------------------------

    async def _save(self, job: Job) -> None:
        await self._retry(lambda: self._store.update(job))
        self._feed.update(job)

    async def _retry(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat a step until the store works, since the image has been paid for."""
        pause, longest = _PAUSES
        while True:
            try:
                return await step()
            except StoreError as error:
                if self._stop is not None:  # nobody waits for a store that fails while closing
                    raise
                logger.warning("a job waits for its store: %s", error.message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)


def _rescue(id: str, content: bytes | None) -> None:
    """Write a paid image that could not be stored to a temporary file."""
    if content is None:
        return
    extension = EXTENSIONS.get(media_type_of(content), "")
    try:
        path = write_temporary(content, prefix="elkimg-job-", suffix=extension)
    except OSError as error:
        logger.error("an image of the job %r is lost: %s", id, error)
    else:
        logger.error("an image of the job %r could not be stored, and is in %s", id, path)


def _completed(job: Job, image: Image, response: ImagesResponse | None = None) -> CompletedImage:
    """Return an image as an event, with the fields of its response if there was one."""
    type_ = "image_edit.completed" if job.edit else "image_generation.completed"
    if response is None:
        return CompletedImage(type=type_, image=image)
    return CompletedImage(
        type=type_,
        image=image,
        created_at=response.created,
        size=response.size,
        quality=response.quality,
        background=response.background,
        output_format=response.output_format,
        usage=response.usage,
    )
