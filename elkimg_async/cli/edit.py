"""`elkimg edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from elkimg_async.cli.console import UsageError
from elkimg_async.cli.image_task import run_calls
from elkimg_async.cli.options import (
    CONNECTION,
    NO_EDIT_OPTIONS,
    OUTPUT,
    SHOW_IMAGES,
    Connection,
    EditImageOptions,
    FileName,
    ImageDisplay,
)

_EXAMPLE = 'elkimg edit kitten.png "Add a red hat"'
EXAMPLES = f"""\
{_EXAMPLE} -o hat.png
elkimg edit kitten.png "Add a red hat" --mask mask.png --local
elkimg edit room.jpg sofa.png "Put the sofa into the room" --input-fidelity high
elkimg edit https://example.com/kitten.png --prompt "Add a red hat\""""


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
    return run_calls(
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
