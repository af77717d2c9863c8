"""What notebooks show: several images as a grid, and a stream's in one place while it runs."""

import html
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from elkimg_async.errors import ConfigurationError
from elkimg_async.image import Image, data_uri

_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));gap:.5rem"


def grid(images: Sequence[Image]) -> str:
    """HTML with the images side by side.

    It asks nothing of any server: the bytes are in it, and of an image without bytes its address
    alone is told. As `img` elements, pictures cannot run what may be in them.
    """
    return f'<div style="{_GRID}">{"".join(map(_cell, images))}</div>'


def _cell(image: Image) -> str:
    told = html.escape(image.revised_prompt or "")
    source = data_uri(image)
    if source is None:
        return f"<code>{html.escape(repr(image))}</code>"
    return f'<img src="{source}" alt="{told}" title="{told}" style="max-width:100%">'


class LiveDisplay:
    """A place in a notebook's output whose picture is replaced by the next one."""

    def __init__(self) -> None:
        """Take a place under the running cell.

        Raises:
            ConfigurationError: by the caller; neither Jupyter nor IPython runs here.
        """
        self._handle = _take_place()
        self._finished: list[Image] = []

    def show(self, image: Image, *, finished: bool) -> None:
        """Show an image, in the place of the one on its way and after those that are finished."""
        shown = [*self._finished, image]
        if finished:
            self._finished = shown
        if len(shown) == 1:
            self._handle.update(image)
        else:
            bundle = {"text/html": grid(shown), "text/plain": repr(shown)}
            self._handle.update(bundle, raw=True)


def _take_place() -> Any:
    """IPython's handle of the place; IPython is never imported for it, since what runs is there."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        handle = importlib.import_module("IPython.display").DisplayHandle()
        handle.display({"text/plain": "Waiting for the first picture …"}, raw=True)
        return handle
    raise ConfigurationError(
        "display() shows pictures in Jupyter or IPython, and neither runs here. "
        "Use `await stream.result()` instead."
    )
