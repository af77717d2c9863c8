"""`elkimg generate`."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import Parameter

from elkimg_async import AsyncImages, Image, PartialImage, Usage, errors
from elkimg_async.batch.names import prompt_stem
from elkimg_async.cli.common import FORMATS, Connection, Picture
from elkimg_async.cli.report import ERR, Report, sentence
from elkimg_async.image import EXTENSIONS

_CONCURRENCY = 8


def generate(
    *prompts: str,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    stream: bool = False,
    picture: Annotated[Picture, Parameter(name="*", group="Picture")] = Picture(),
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """Make images from text, and save them.

    The API key is read from the environment variable ELKAPI_API_KEY.

    Args:
        prompts: What the picture shows. Several are made side by side.
        output: A file, which is replaced, and with several images kitten-2.png and so on as well;
            or a folder. In a folder, and here if not given, new files are named after the prompt.
        stream: Save images on the way as well (kitten-partial-0.png).
    """
    if not prompts:
        raise errors.ConfigurationError('Say what to make: elkimg generate "A small kitten".')
    connection.check()
    options, names, report = picture.options(output), Names(output), Report()
    return run([Order(prompt, options, names, report) for prompt in prompts], connection, stream)


def run(orders: list[Order], connection: Connection, stream: bool) -> int:
    """Carry out the orders, side by side; returns the exit code."""
    report = orders[0].report

    async def carry_out() -> None:
        limiter = anyio.CapacityLimiter(_CONCURRENCY)
        with report.bars if ERR.is_interactive else contextlib.nullcontext():
            async with connection.client(report) as client, anyio.create_task_group() as tasks:
                for order in orders:
                    tasks.start_soon(order.run, client, stream, limiter)

    try:
        anyio.run(carry_out)
    finally:
        report.print_table()
    return 1 if report.failed else 0


class Order:
    """One prompt: the call, and where its images go; with `images` it is an edit of those."""

    def __init__(
        self,
        prompt: str,
        options: dict[str, Any],
        names: Names,
        report: Report,
        images: Sequence[str] = (),
    ) -> None:
        self._prompt, self._options, self._names, self.report = prompt, options, names, report
        self._images = images
        stems = [names.reserve(prompt) for _ in range(min(max(options["n"] or 1, 1), 10))]
        more = (names.reserve(prompt) for _ in itertools.count())  # than were asked for
        self._stems = itertools.chain(stems, more)
        self._partials = (f"{stems[0]}-partial-{number}" for number in itertools.count())
        self._counted = False

    async def run(self, client: AsyncImages, stream: bool, limiter: anyio.CapacityLimiter) -> None:
        """Ask for the images and save them as they come; a failure is reported, not raised."""
        async with limiter:
            self._began = time.monotonic()
            task = self.report.begin(self._prompt)
            try:
                await (self._stream(client) if stream else self._batch(client))
            except errors.ElkImagesError as error:
                self.report.fail(sentence(error), self._prompt)
            self.report.bars.remove_task(task)

    async def _batch(self, client: AsyncImages) -> None:
        try:
            if self._images:
                response = await client.edit(self._images, self._prompt, **self._options)
            else:
                response = await client.generate(self._prompt, **self._options)
        except errors.ElkImagesError as error:
            for image in getattr(error, "images", ()):  # the good ones are paid for all the same
                await self._save(next(self._stems), image)
            raise
        for image in response:
            await self._save(next(self._stems), image, response.size, response.usage)

    async def _stream(self, client: AsyncImages) -> None:
        if self._images:
            asked = client.edit(self._images, self._prompt, stream=True, **self._options)
        else:
            asked = client.generate(self._prompt, stream=True, **self._options)
        async with asked as stream:
            async for event in stream:
                if isinstance(event, PartialImage):
                    await self._save(next(self._partials), event.image, event.size)
                else:
                    await self._save(next(self._stems), event.image, event.size, event.usage)

    async def _save(
        self, stem: str, image: Image, size: str | None = None, usage: Usage | None = None
    ) -> None:
        try:
            await image.read()
            path = await image.save(self._names.path(stem, image))
        except errors.DownloadError as error:
            self.report.fail(f"{sentence(error)} The image is at {image.url}", self._prompt)
        except OSError as error:
            self.report.fail(f"{stem} could not be saved: {error.strerror}.", self._prompt)
        else:
            # Each image comes with the usage of the whole call.
            tokens = usage.total_tokens if usage and not self._counted else None
            self._counted = self._counted or usage is not None
            self.report.add(path, image, size, tokens, time.monotonic() - self._began)


class Names:
    """The files that images go to: no two the same, and no old one but what the user named."""

    def __init__(self, output: str | None) -> None:
        self._folder, self._stem, self._suffix = Path(output or "."), "", ""
        self._taken: set[str] = set()
        if output and not output.endswith(("/", "\\")) and not self._folder.is_dir():
            self._folder, self._stem = self._folder.parent, self._folder.name
            suffix = Path(self._stem).suffix
            if suffix.lower() in {*EXTENSIONS.values(), *FORMATS, ".tif"}:
                self._stem, self._suffix = self._stem.removesuffix(suffix), suffix
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()  # better now than after paying
            if not self._stem:  # a partial image holds the name of its final one as well
                files = [file.stem.lower() for file in self._folder.iterdir()]
                self._taken = {re.sub(r"-partial-\d+$", "", file) for file in files}
        except OSError as error:
            raise errors.ConfigurationError(
                f"The images cannot go to {self._folder}: {error.strerror}. Choose another with -o."
            ) from None

    def reserve(self, prompt: str) -> str:
        """A name without extension that nobody else gets: kitten, kitten-2, kitten-3."""
        stem = first = self._stem or prompt_stem(prompt) or "image"
        numbers = itertools.count(2)
        while stem in self._taken:
            stem = f"{first}-{next(numbers)}"
        self._taken.add(stem)
        return stem

    def path(self, stem: str, image: Image) -> Path:
        """The file, with the extension that the user gave, else that of what the image is."""
        return self._folder / (stem + (self._suffix or EXTENSIONS.get(image.media_type or "", "")))
