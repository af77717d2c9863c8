"""`elkimg generate` and `elkimg edit`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter

from elkimg_async.cli import interrupts
from elkimg_async.cli.console import UsageError
from elkimg_async.cli.image_task import ImageTask
from elkimg_async.cli.options import (
    CONNECTION,
    NO_EDIT_OPTIONS,
    NO_IMAGE_OPTIONS,
    OUTPUT,
    SHOW_IMAGES,
    Connection,
    EditImageOptions,
    FileName,
    GenerateImageOptions,
    ImageDisplay,
    ImageOptions,
    check_options,
)
from elkimg_async.cli.output import STDOUT, OutputFiles, check_stdout, choose_format
from elkimg_async.cli.report import Report

GENERATE_EXAMPLES = """\
elkimg generate "A small kitten in a sunny garden"
elkimg generate "A small kitten" --local
elkimg generate "A kitten" -o kitten.webp --size 1536x1024 --quality high
elkimg generate "A red fox" "A grey heron" -o images
elkimg generate "A small kitten" --stream --partial-images 2
elkimg generate "A small kitten" -o - > kitten.png"""
_EXAMPLE = 'elkimg edit kitten.png "Add a red hat"'
EDIT_EXAMPLES = f"""\
{_EXAMPLE} -o hat.png
elkimg edit kitten.png "Add a red hat" --mask mask.png --local
elkimg edit room.jpg sofa.png "Put the sofa into the room" --input-fidelity high
elkimg edit https://example.com/kitten.png --prompt "Add a red hat\""""

_CONCURRENCY = 8


def generate(
    *prompts: Annotated[str, Parameter(metavar="PROMPT")],
    output: Annotated[FileName | None, OUTPUT] = None,
    stream: bool = False,
    image: Annotated[GenerateImageOptions, Parameter(name="*", group="Image")] = NO_IMAGE_OPTIONS,
    display: Annotated[ImageDisplay, Parameter(name="*", group="Display")] = SHOW_IMAGES,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Generate images from text and save them.

    Args:
        prompts: What the image shows. Several prompts run concurrently.
        output: Where to save. A file is replaced, and with --n 2 the second image is kitten-2.png;
            the suffix selects the format. In a folder (the current one by default), new files are
            named after the prompt; with several prompts a name without suffix is a folder. "-"
            writes one image to standard output.
        stream: Save previews as well, while the image is being generated (kitten-partial-0.png).
        image: Options of the image.
        display: What is printed.
        connection: Where requests go.
    """
    if not any(prompt.strip() for prompt in prompts):
        raise UsageError('Describe the image: elkimg generate "A small kitten".')
    return _run(prompts, image, output, stream=stream, display=display, connection=connection)


def edit(
    *images: Annotated[FileName, Parameter(metavar="IMAGE")],
    prompt: Annotated[str | None, Parameter(alias="-p", metavar="TEXT")] = None,
    output: Annotated[FileName | None, OUTPUT] = None,
    stream: bool = False,
    image: Annotated[EditImageOptions, Parameter(name="*", group="Image")] = NO_EDIT_OPTIONS,
    display: Annotated[ImageDisplay, Parameter(name="*", group="Display")] = SHOW_IMAGES,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Edit images according to a prompt, and save the result.

    Args:
        images: Files or URLs of up to 16 images, all for one result: png, webp or jpeg, each under
            50 MB. The prompt comes after them, unless it is passed as --prompt.
        prompt: What the result shows.
        output: Where to save. A file is replaced, and with --n 2 the second image is hat-2.png; the
            suffix selects the format. In a folder (the current one by default), new files are named
            after the prompt. "-" writes one image to standard output.
        stream: Save previews as well, while the image is being generated (hat-partial-0.png).
        image: Options of the image.
        display: What is printed.
        connection: Where requests go.
    """
    if prompt is None:
        *files, prompt = images or ("",)
        if not prompt.strip() or _is_file(prompt):
            raise UsageError(f"Say what to change, after the files: {_EXAMPLE}.")
    else:
        files = list(images)
    if not files:
        raise UsageError(f"Name the images before the text: {_EXAMPLE}.")
    return _run(
        [prompt],
        image,
        output,
        images=files,
        stream=stream,
        display=display,
        connection=connection,
    )


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file name, as prompts often are
        return False


def _run(
    prompts: Sequence[str],
    image: ImageOptions,
    output: str | None,
    *,
    images: Sequence[str] = (),
    stream: bool,
    display: ImageDisplay,
    connection: Connection,
) -> int:
    """Check the options, run a call for each prompt, all concurrently, and return the exit code."""
    options = choose_format(image.options(), output)
    check_options(options, stream=stream)
    display.check()
    connection.check()
    files, report = None, Report(display)
    if output == STDOUT:
        check_stdout(len(prompts), options.get("n", 1), display)
    else:
        files = OutputFiles(output, several=len(prompts) > 1)
    tasks = [
        ImageTask(prompt, options, files, report, stream=stream, images=images)
        for prompt in prompts
    ]

    async def run() -> None:
        limiter = anyio.CapacityLimiter(_CONCURRENCY)
        opened = connection.client(say=display.say, on_event=report.on_event)
        with report.bars if report.animated else contextlib.nullcontext():
            async with opened as client, anyio.create_task_group() as group:
                for task in tasks:
                    group.start_soon(task.run, client, limiter)

    try:
        interrupts.run(run)
    finally:
        report.finish()
    return report.exit_code
