"""Notebook output: several images as a grid, and the images of a stream in place."""

import importlib
import sys
from collections.abc import Sequence
from html import escape
from typing import Any

from elkimg_async.errors import ConfigurationError
from elkimg_async.image import Image

_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));gap:.5rem"


def grid(images: Sequence[Image], *, finished: bool = True) -> str:
    """Return HTML that shows previews of images side by side; the last one may not be finished.

    It loads nothing: an image without bytes is shown as its URL, in text. Images are `img`
    elements, which never run scripts.
    """
    last = len(images) - 1
    cells = "".join(
        _cell(image, link=finished or number < last) for number, image in enumerate(images)
    )
    return f'<div style="{_GRID}">{cells}</div>'


def _cell(image: Image, *, link: bool = True) -> str:
    return image.to_html(link=link) or f"<code>{escape(repr(image))}</code>"


class LiveDisplay:
    """An output of the running cell whose image is replaced by the next one."""

    def __init__(self) -> None:
        """Create the output under the running cell.

        Raises:
            ConfigurationError: If neither Jupyter nor IPython is running.
        """
        self._handle = _create_output()
        self._finished: list[Image] = []

    def show(self, image: Image, *, finished: bool) -> None:
        """Show an image after the finished ones, in place of the partial one."""
        shown = [*self._finished, image]
        if finished:
            self._finished = shown
        if len(shown) == 1:
            bundle: dict[str, bytes | str] = image._repr_mimebundle_(link=finished)
        else:
            bundle = {"text/html": grid(shown, finished=finished), "text/plain": repr(shown)}
        self._handle.update(bundle, raw=True)


def _create_output() -> Any:
    """Return IPython's handle of a new output; IPython is never imported just for this."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        handle = importlib.import_module("IPython.display").DisplayHandle()
        handle.display({"text/plain": "Waiting for the first image …"}, raw=True)
        return handle
    raise ConfigurationError(
        "display() needs Jupyter or IPython, and neither is running. "
        "Use `await stream.result()` instead."
    )
