"""One call of `elkimg generate` or `elkimg edit`, and the saving of its images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio

from elkimg_async import AsyncImages, Image, Meta, PartialImage, Usage, errors
from elkimg_async.batch.budget import fatal_reason
from elkimg_async.cli.console import sentence
from elkimg_async.cli.output import OutputFiles, rescue, write_stdout
from elkimg_async.cli.report import Report, SavedImage


class ImageTask:
    """One call for a prompt, and the files of its images.

    With `images` it is an edit of those; without `files` its one image goes to standard output.
    """

    def __init__(
        self,
        prompt: str,
        options: dict[str, Any],
        files: OutputFiles | None,
        report: Report,
        *,
        stream: bool,
        images: Sequence[str],
    ) -> None:
        self._prompt, self._options, self._report = prompt, options, report
        self._files, self._stream, self._images = files, stream, images
        self._stems: Iterator[str] = iter(())
        self._previews: Iterator[str] = iter(())
        if files is not None:
            # Reserved at the start, so that names do not depend on which call ends first.
            n = min(max(options.get("n") or 1, 1), 10)
            stems = [files.reserve(prompt) for _ in range(n)]
            extra = (files.reserve(prompt) for _ in itertools.count())  # more than requested
            self._stems = itertools.chain(stems, extra)
            self._previews = (f"{stems[0]}-partial-{number}" for number in itertools.count())
        self._written = self._counted = False
        self._began = 0.0

    async def run(self, client: AsyncImages, limiter: anyio.CapacityLimiter) -> None:
        """Send the request and save images as they arrive; a failure is printed, not raised."""
        async with limiter:
            if self._report.stopped:
                return
            self._began = time.monotonic()
            bar = self._report.begin(self._prompt)
            try:
                await (self._run_stream(client) if self._stream else self._run_batch(client))
            except errors.ElkImagesError as error:
                unsent = isinstance(error, (errors.ConfigurationError, errors.InvalidRequestError))
                show = self._report.fail if fatal_reason(error) is None else self._report.stop
                show(sentence(error), self._prompt, sent=not unsent)
            self._report.bars.remove_task(bar)

    def _call(self, client: AsyncImages, **options: Any) -> Any:
        if self._images:
            return client.edit(self._images, self._prompt, **self._options, **options)
        return client.generate(self._prompt, **self._options, **options)

    async def _run_batch(self, client: AsyncImages) -> None:
        try:
            response = await self._call(client)
        except errors.ElkImagesError as error:
            await self._save_images_of(error)
            raise
        self._report.add_cost(response.meta)
        for image in response:
            await self._save(image, response.size, response.usage, meta=response.meta)

    async def _run_stream(self, client: AsyncImages) -> None:
        delivered: list[Image] = []
        try:
            async with self._call(client, stream=True) as stream:
                async for event in stream:
                    if not isinstance(event, PartialImage):
                        delivered.append(event.image)
                        await self._save(event.image, event.size, event.usage)
                    elif self._files is not None:
                        await self._save(event.image, event.size, partial=True)
                self._report.add_cost((await stream.result()).meta)
        except errors.ElkImagesError as error:
            await self._save_images_of(error, delivered)
            raise

    async def _save_images_of(
        self, error: errors.ElkImagesError, delivered: Sequence[Image] = ()
    ) -> None:
        """Save the images of a failed call that were not `delivered` before: they are paid for."""
        for image in error.images:
            if not any(image is other for other in delivered):
                await self._save(image, request_id=error.request_id)

    async def _save(
        self,
        image: Image,
        size: str | None = None,
        usage: Usage | None = None,
        *,
        partial: bool = False,
        request_id: str | None = None,
        meta: Meta | None = None,
    ) -> None:
        path, place = None, "The image"
        try:
            content = await image.read()
            if self._files is not None:
                place = next(self._previews if partial else self._stems)
                path = await image.save(self._files.path(place, image))
            elif self._written:
                problem = "The server returned more than one image; only the first was written."
                self._report.fail(f"{problem} {await rescue(image)}", self._prompt)
                return
            else:
                self._written = True
                await anyio.to_thread.run_sync(write_stdout, content)
        except errors.DownloadError as error:
            self._report.fail(f"{sentence(error)} The image is at {image.url}", self._prompt)
        except OSError as error:
            problem = f"{place} could not be saved: {error.strerror}."
            if not partial:
                problem += f" {await rescue(image)}"
            self._report.fail(problem, self._prompt)
            if isinstance(error, BrokenPipeError):
                raise
        else:
            seconds = time.monotonic() - self._began
            # Each image carries the usage of the whole call: it is counted once.
            counts = usage is not None and not self._counted
            self._counted = self._counted or counts
            request_id = meta.request_id if meta else request_id
            saved = SavedImage(
                path, image, self._prompt, partial, size, usage, seconds, request_id, meta
            )
            self._report.add(saved, counts_usage=counts)
