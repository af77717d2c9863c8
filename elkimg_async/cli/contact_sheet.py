"""A contact sheet: thumbnails of a run, each with its number and the start of its prompt."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from elkimg_async import errors
from elkimg_async.cli.console import UsageError

_PER_PAGE = 400
_LARGE, _SMALL = 192, 128  # pixels of an edge, for up to a hundred images and for more
_FEW = 100
_GAP, _CAPTION = 8, 28  # pixels
_PAPER, _INK, _RED, _PALE = (250, 250, 248), (40, 40, 40), (150, 30, 30), (245, 224, 222)


class Tile(NamedTuple):
    """One tile of the sheet: an image, or the error in its place."""

    number: int
    prompt: str
    path: Path | None = None
    error: str | None = None


def check_path(path: Path) -> None:
    """Check where the sheet is to be saved, before images are paid for.

    Raises:
        UsageError: If its suffix is not that of an image, or its folder does not exist.
    """
    with contextlib.suppress(ImportError):  # drawing reports that Pillow is missing
        from PIL import Image

        if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
            raise UsageError(
                f"--contact-sheet {path}: the suffix is not that of an image. Use .png or .jpg."
            )
    if not path.parent.is_dir():
        raise UsageError(f"--contact-sheet {path}: the folder {path.parent} does not exist.")


async def draw(tiles: Sequence[Tile], path: Path) -> list[Path]:
    """Draw the tiles in the order of their numbers and return the pages, 400 tiles on each.

    Raises:
        ConfigurationError: If Pillow is missing, or the sheet cannot be saved.
    """
    return await anyio.to_thread.run_sync(_draw, sorted(tiles, key=lambda tile: tile.number), path)


def _draw(tiles: Sequence[Tile], path: Path) -> list[Path]:
    pages = []
    for number, start in enumerate(range(0, len(tiles), _PER_PAGE), 1):
        page = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            _draw_page(tiles[start : start + _PER_PAGE], page)
        except (OSError, ValueError) as error:
            raise errors.ConfigurationError(
                f"The contact sheet cannot be saved as {page}: {error}."
            ) from None
        pages.append(page)
    return pages


def _draw_page(tiles: Sequence[Tile], path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    edge = _LARGE if len(tiles) <= _FEW else _SMALL
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = edge + _GAP, edge + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    letters = edge // 6
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        x, y = _GAP + column * width, _GAP + row * height
        problem = tile.error
        if tile.path is not None:
            try:
                with Image.open(tile.path) as image:
                    image.thumbnail((edge, edge))
                    shown = image.convert("RGBA")
                middle = (x + (edge - shown.width) // 2, y + (edge - shown.height) // 2)
                sheet.paste(shown, middle, shown)
            except (OSError, ValueError, Image.DecompressionBombError):
                problem = f"{tile.path.name} cannot be read"
        if problem is not None:
            pen.rectangle((x, y, x + edge - 1, y + edge - 1), _PALE, _RED)
            lines = textwrap.wrap(problem, letters - 2)[: edge // 14 - 1]
            _write(pen, (x + 6, y + 6), "\n".join(lines), _RED, font)
        caption = textwrap.shorten(f"{tile.number}: {tile.prompt}", letters * 2, placeholder="…")
        _write(pen, (x, y + edge + 2), textwrap.fill(caption, letters), _INK, font)
    sheet.save(path)


def _write(
    pen: object, place: tuple[int, int], text: str, ink: tuple[int, int, int], font: object
) -> None:
    with contextlib.suppress(UnicodeError):  # a font without Unicode
        pen.multiline_text(place, text, ink, font, spacing=1)  # type: ignore[attr-defined]
