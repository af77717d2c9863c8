"""`elkimg edit` and `elkimg models`, run as people run them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from elkimg_async.local import LocalServer
from tests.cli.test_app import KEY, run, started
from tests.helpers.canned import Canned, answer
from tests.local.test_edits import HOLE, mask, picture


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, light=True, delay=0) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures."""
    (tmp_path / "kitten.png").write_bytes(picture())
    (tmp_path / "mask.png").write_bytes(mask())
    return tmp_path


async def test_edit_with_the_local_server(folder: Path) -> None:
    """The first command of a user: no key, a mask, and a file that is painted in the hole only."""
    ended = await run(
        *("edit", "kitten.png", "add a red hat", "--mask", "mask.png", "--local", "-o", "hat.png"),
        folder=folder,
    )
    assert (ended.code, "hat.png" in ended.out) == (0, True)
    with Pillow.open(folder / "hat.png") as hat, Pillow.open(folder / "kitten.png") as kitten:
        left = (0, 0, HOLE[0], 64)
        assert hat.crop(left).tobytes() == kitten.convert(hat.mode).crop(left).tobytes()
        assert hat.tobytes() != kitten.convert(hat.mode).tobytes()


async def test_edit_streams_several_pictures(folder: Path, server: LocalServer) -> None:
    """Several pictures, the text as an option, options of the picture, and images on the way."""
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
        (("add a hat",), "Name the pictures before the text"),
        (("--prompt", "add a hat"), "Name the pictures before the text"),
        (("nope.png", "add a hat"), "'nope.png' cannot be read: No such file"),
        (("kitten.png", "add a hat", "--mask", "kitten.png"), "no transparency"),
        (("kitten.png", "add a hat", "--input-fidelity", "most"), "--input-fidelity 'most'"),
    ],
)
async def test_edit_in_vain(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    """What cannot work is said in a sentence, with exit code 1, and no file is left."""
    ended = await run("edit", *arguments, "--local", folder=folder)
    assert ended.code == 1
    assert words in " ".join(ended.err.split())
    assert len(list(folder.iterdir())) == 2


async def test_models(tmp_path: Path, server: LocalServer) -> None:
    """The models of the server are listed, one on each line."""
    ended = await run("models", folder=tmp_path, server=server)
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["model", "images", "owner", "since"]
    assert ["gpt-image-1.5", "yes", "elkimg-local", "2023-11-14"] in lines


async def test_models_of_every_kind(tmp_path: Path) -> None:
    """Models that make no images are left out, but with --all; what is not known is shown as such."""
    models = [
        {"id": "talker", "supported_endpoint_types": ["openai"], "created": 1e300},
        {"id": "painter", "supported_endpoint_types": ["image-generation"]},
        {"id": "riddle\x1b[31m"},
    ]
    async with Canned(answer({"data": models})) as canned:
        url = ("--base-url", canned.base_url)
        code = "import os; os.environ['ELKAPI_API_KEY'] = 'sk-1'; from elkimg_async.cli import main; main()"
        async with started("models", *url, folder=tmp_path, code=code) as command:
            some = await command.ended()
        async with started("models", "--all", *url, folder=tmp_path, code=code) as command:
            every = await command.ended()
    assert [line.split()[:2] for line in some.out.splitlines()[1:]] == [
        ["painter", "yes"],
        ["riddle", "[31m"],
    ]
    assert "1 models that make no images are left out; --all lists them." in some.err
    assert ["talker", "no", "-", "-"] in [line.split() for line in every.out.splitlines()]


async def test_models_without_a_server(tmp_path: Path) -> None:
    """A server that is not there is said in a sentence."""
    async with LocalServer(api_key=KEY) as server:
        gone = server
    ended = await run("models", "--retries", "0", folder=tmp_path, server=gone)
    assert ended.code == 1
    assert "cannot be reached" in ended.err
