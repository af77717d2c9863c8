"""Contact sheets of a batch."""

from pathlib import Path

import pytest
from PIL import Image as Pillow

from elkimg_async import ConfigurationError
from elkimg_async.cli.contact_sheet import Tile, draw


async def test_contact_sheet_of_many_has_pages(tmp_path: Path) -> None:
    """A page has at most four hundred tiles."""
    Pillow.new("RGB", (30, 60), (0, 200, 0)).save(tmp_path / "p.png")
    tiles = [Tile(n, "小船 " * 50, tmp_path / "p.png") for n in range(450)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    tiles[0] = Tile(0, "broken", tmp_path / "broken.png")
    pages = await draw(tiles, tmp_path / "sheet.png")
    assert [page.name for page in pages] == ["sheet.png", "sheet-2.png"]
    for page, columns, rows in zip(pages, (20, 8), (20, 7), strict=True):
        with Pillow.open(page) as sheet:
            edge = 128 if columns == 20 else 192
            assert sheet.size == (columns * (edge + 8) + 8, rows * (edge + 36) + 8)


async def test_contact_sheet_that_cannot_be_saved(tmp_path: Path) -> None:
    """A missing folder and an unknown suffix are named."""
    for name in ("none/sheet.png", "sheet.nothing"):
        with pytest.raises(ConfigurationError, match="cannot be saved"):
            await draw([Tile(0, "a", error="failed")], tmp_path / name)
