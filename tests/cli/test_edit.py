"""`elkimg edit`, run as people run it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from elkimg_async.local import LocalServer
from tests.helpers.command import API_KEY, run
from tests.local.test_edits import HOLE, mask, noise_image


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image and a mask."""
    (tmp_path / "kitten.png").write_bytes(noise_image())
    (tmp_path / "mask.png").write_bytes(mask())
    return tmp_path


async def test_edit_with_local_server(folder: Path) -> None:
    """Without an API key a mask works, and only its hole is painted."""
    ended = await run(
        *("edit", "kitten.png", "add a red hat", "--mask", "mask.png", "--local", "-o", "hat.png"),
        folder=folder,
    )
    assert (ended.code, "hat.png" in ended.out) == (0, True)
    with Pillow.open(folder / "hat.png") as hat, Pillow.open(folder / "kitten.png") as kitten:
        outside = (0, 0, HOLE[0], 64)
        assert hat.crop(outside).tobytes() == kitten.convert(hat.mode).crop(outside).tobytes()
        assert hat.tobytes() != kitten.convert(hat.mode).tobytes()


async def test_edit_streams_several_images(folder: Path, server: LocalServer) -> None:
    """Several images, the text as an option, other options, and previews."""
    ended = await run(
        *("edit", "kitten.png", "mask.png", "-p", "both", "--stream", "--partial-images", "2"),
        *("--input-fidelity", "high", "--n", "2", "-o", "out/"),
        folder=folder,
        server=server,
    )
    assert ended.code == 0
    names = ["both-2.png", "both-partial-0.png", "both-partial-1.png", "both.png"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    fields = server.requests[-1].fields
    assert [file["filename"] for file in fields["image[]"]] == ["kitten.png", "mask.png"]
    assert (fields["prompt"], fields["input_fidelity"], fields["n"]) == ("both", "high", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Say what to change"),
        (("kitten.png",), "Say what to change"),
        (("kitten.png", " "), "Say what to change"),
        (("add a hat",), "Name the images before the text"),
        (("--prompt", "add a hat"), "Name the images before the text"),
        (("nope.png", "add a hat"), "'nope.png' cannot be read: No such file"),
        (("kitten.png", "add a hat", "--mask", "kitten.png"), "no transparency"),
        (("kitten.png", "add a hat", "--input-fidelity", "most"), "--input-fidelity 'most'"),
    ],
)
async def test_edit_with_wrong_arguments(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    """What cannot work is rejected in one sentence, and no file is left."""
    ended = await run("edit", *arguments, "--local", folder=folder)
    assert ended.code in (1, 2)
    assert words in " ".join(ended.err.split())
    assert len(list(folder.iterdir())) == 2


async def test_edit_of_missing_file_sends_nothing(folder: Path, server: LocalServer) -> None:
    """A file that cannot be read is named, and exit code 2 says that nothing was sent."""
    ended = await run("edit", "nope.png", "add a hat", folder=folder, server=server)
    assert ended.code == 2
    assert "nope.png" in ended.err
    assert not server.requests
