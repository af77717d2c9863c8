"""`elkimg generate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from elkimg_async.cli.console import UsageError
from elkimg_async.cli.image_task import run_calls
from elkimg_async.cli.options import (
    CONNECTION,
    NO_IMAGE_OPTIONS,
    OUTPUT,
    SHOW_IMAGES,
    Connection,
    FileName,
    GenerateImageOptions,
    ImageDisplay,
)

EXAMPLES = """\
elkimg generate "A small kitten in a sunny garden"
elkimg generate "A small kitten" --local
elkimg generate "A kitten" -o kitten.webp --size 1536x1024 --quality high
elkimg generate "A red fox" "A grey heron" -o images
elkimg generate "A small kitten" --stream --partial-images 2
elkimg generate "A small kitten" -o - > kitten.png"""


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
    return run_calls(prompts, image, output, stream=stream, display=display, connection=connection)
