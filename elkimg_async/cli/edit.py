"""`elkimg edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from elkimg_async import errors
from elkimg_async.cli.options import Connection, ImageOptions
from elkimg_async.cli.generate import Names, Order, run
from elkimg_async.cli.report import Report

_EXAMPLE = 'elkimg edit kitten.png "Add a red hat"'


def edit(
    *images: str,
    prompt: Annotated[str | None, Parameter(alias="-p")] = None,
    mask: Annotated[str | None, Parameter(alias="-m")] = None,
    input_fidelity: str | None = None,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    stream: bool = False,
    picture: Annotated[ImageOptions, Parameter(name="*", group="Picture")] = ImageOptions(),
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """Change pictures as a text says: elkimg edit kitten.png "Add a red hat".

    The API key is read from the environment variable ELKAPI_API_KEY.

    Args:
        images: The files of the pictures, up to 16, all for one result: png, webp or jpeg, less than
            50 MB each. The text comes after them, unless it is given with --prompt.
        prompt: What the result shows.
        mask: A picture of the size of the first one; where it is fully transparent, that is edited.
        input_fidelity: high keeps features such as faces closer to the pictures, low costs less.
        output: A file, which is replaced, and with several results hat-2.png and so on as well;
            or a folder. In a folder, and here if not given, new files are named after the text.
        stream: Save images on the way as well (hat-partial-0.png).
    """
    if prompt is None:
        *files, prompt = images or ("",)
        if not prompt.strip() or _is_file(prompt):
            raise errors.ConfigurationError(f"Say what to change, after the files: {_EXAMPLE}.")
    else:
        files = list(images)
    if not files:
        raise errors.ConfigurationError(f"Name the pictures before the text: {_EXAMPLE}.")
    connection.check()
    options = {**picture.options(output), "mask": mask, "input_fidelity": input_fidelity}
    return run([Order(prompt, options, Names(output), Report(), files)], connection, stream)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name, as many a prompt is
        return False
