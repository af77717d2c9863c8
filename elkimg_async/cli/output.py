"""Names and formats of the files that images are saved to."""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from elkimg_async import Image, errors
from elkimg_async.batch.names import prompt_stem
from elkimg_async.cli.console import CLOSED_STREAMS, UsageError, sentence
from elkimg_async.cli.options import ImageDisplay
from elkimg_async.files import write_temporary
from elkimg_async.media_types import EXTENSIONS, FORMATS, TYPES, media_type_of
from elkimg_async.sansio.model_rules import is_gpt_image
from elkimg_async.sansio.requests import DEFAULT_MODEL

STDOUT = "-"
_FORMATS = {suffix: FORMATS[kind] for suffix, kind in TYPES.items() if kind in FORMATS}


def choose_format(options: dict[str, Any], output: str | None) -> dict[str, Any]:
    """Return the options with the format selected by the suffix of `output`.

    Raises:
        UsageError: If `--output-format` differs from it, or `output` looks like an option.
    """
    if output is not None and output.startswith("-") and output != STDOUT:
        raise UsageError(f"-o needs a file or folder; found {output}.")
    suffix = Path(output or "").suffix
    wanted, named = _FORMATS.get(suffix.lower()), options.get("output_format")
    has_formats = is_gpt_image(options.get("model") or DEFAULT_MODEL)
    if wanted is None:
        if suffix.lower() in TYPES and has_formats and not Path(output or "").is_dir():
            raise UsageError(
                f"-o {output}: no model creates {suffix[1:]}. Use .png, .jpg, .webp, .gif or .svg."
            )
        return options
    if named is not None and named != wanted:
        raise UsageError(
            f"-o {output} means {wanted}, but --output-format is {named}. Omit one of them, "
            "or use the same format in both."
        )
    # PNG is the default of every model; those of other families reject the parameter.
    if named is not None or wanted == "png" or not has_formats:
        return options
    return {**options, "output_format": wanted}


class OutputFiles:
    """The files that a command writes, with distinct names that never replace unrelated files.

    `output` is a file or a folder, None for the current folder; with `several` prompts, a name
    without an image suffix is a folder.
    """

    def __init__(self, output: str | None, *, several: bool = False) -> None:
        self._folder, self._stem, self._suffix = Path(output or "."), "", ""
        self._reserved: set[str] = set()
        suffix = Path(output or "").suffix
        if suffix.lower() not in TYPES:
            suffix = ""
        folder = not output or output.endswith(("/", "\\")) or self._folder.is_dir()
        if not folder and (suffix or not several):
            self._folder, self._stem = self._folder.parent, self._folder.name
            self._stem, self._suffix = self._stem.removesuffix(suffix), suffix
        self._prepare_folder()

    def _prepare_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()  # fails now rather than after paying
            if not self._stem:  # a preview reserves the name of its final image as well
                existing = [file.stem.lower() for file in self._folder.iterdir()]
                self._reserved = {re.sub(r"-partial-\d+$", "", name) for name in existing}
        except OSError as error:
            raise errors.ConfigurationError(
                f"Images cannot be saved in {self._folder}: {error.strerror}. "
                "Choose another folder with -o."
            ) from None

    def reserve(self, prompt: str) -> str:
        """Return an unused name without suffix, like kitten, kitten-2, kitten-3."""
        stem = first = self._stem or prompt_stem(prompt) or "image"
        numbers = itertools.count(2)
        while stem in self._reserved:
            stem = f"{first}-{next(numbers)}"
        self._reserved.add(stem)
        return stem

    def path(self, stem: str, image: Image) -> Path:
        """Return the path, with the user's suffix or else that of the image's type."""
        return self._folder / (stem + (self._suffix or EXTENSIONS.get(image.media_type or "", "")))


async def rescue(image: Image) -> str:
    """Write a paid image that cannot be saved to a temporary file; return a sentence that says so.

    If that fails too, the sentence says why.
    """
    try:
        content = await image.read()
    except errors.DownloadError as error:
        return f"{sentence(error)} The image is at {image.url}"
    extension = EXTENSIONS.get(media_type_of(content), "")
    try:
        # Not in a thread: Ctrl-C would come between the file and the sentence that names it.
        path = write_temporary(content, prefix="elkimg-", suffix=extension)
    except OSError as error:
        reason = error.strerror or error
        return f"The image could not be written to a temporary file either: {reason}."
    return f"The image was written to a temporary file: {path}"


def write_stdout(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def check_stdout(prompts: int, n: int, display: ImageDisplay) -> None:
    """Check that exactly one image goes to standard output, and nothing else does.

    Raises:
        UsageError: If there are more images, other output or --open, or it is closed or a terminal.
    """
    if prompts > 1 or n > 1:
        raise UsageError("-o - writes exactly one image: pass one prompt, and no --n above 1.")
    if display.json:
        raise UsageError("-o - and --json both use standard output; pass only one of them.")
    if display.open:
        raise UsageError("-o - saves no file that --open could show; pass only one of them.")
    if "stdout" in CLOSED_STREAMS:
        raise UsageError("-o - writes to standard output, which is closed.")
    if sys.stdout.isatty():
        raise UsageError(
            "-o - writes the image's bytes, which a terminal cannot show: redirect them, "
            'as in elkimg generate "A small kitten" -o - > kitten.png'
        )
