"""Runs of edits: the hashes of their inputs, and resuming them."""

import io
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import AsyncImages, GenerateRequest, InvalidRequestError, JournalError
from elkimg_async.batch.inputs import full_fingerprint, hash_inputs, journal_fingerprint
from elkimg_async.batch.journal import fingerprint
from elkimg_async.batch.storage import MANIFEST
from elkimg_async.image import Image
from elkimg_async.sansio.requests import EditRequest
from tests.helpers.runs import Server, everything, hold, in_order, lines, make_png

PHOTO, OTHER = make_png(8, 8), make_png(16, 16)


def edit(image: Any, prompt: str = "add a hat", **fields: Any) -> EditRequest:
    """Return an edit as a user writes it."""
    return EditRequest(image=image, prompt=prompt, **fields)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("IMG_1.png", "IMG_2.png", "IMG_3.png"):
        (folder / name).write_bytes(PHOTO)
    return folder


def test_hash_inputs_depends_on_content_only(photos: Path) -> None:
    """The same bytes have the same hash, in a file, in memory, or in an open file."""
    path = photos / "IMG_1.png"
    with path.open("rb") as file:
        file.seek(3)
        same = [str(path), path, PHOTO, bytearray(PHOTO), io.BytesIO(PHOTO), Image(PHOTO), file]
        same += [("a.png", PHOTO), [path], ("b.png", io.BytesIO(PHOTO), "image/png")]
        assert len({hash_inputs(edit(image)) for image in same}) == 1
        assert file.tell() == 3
    others = [edit(OTHER), edit([PHOTO, PHOTO]), edit(PHOTO, mask=PHOTO), edit("https://h/a.png")]
    assert len({hash_inputs(request) for request in [edit(PHOTO), *others]}) == 5


@pytest.mark.parametrize("image", ["missing.png", Path("/"), "a\0b", 7, object()], ids=range(5))
def test_hash_inputs_of_what_cannot_be_read(image: Any) -> None:
    """An input that cannot be read is an error of its request."""
    with pytest.raises(InvalidRequestError, match=r"image|cannot be read"):
        hash_inputs(edit(image))


def test_fingerprint_of_an_edit() -> None:
    """The parts identify the request, the content of its files and, in a journal, their names."""
    one, other = (full_fingerprint(edit(content), stream=False) for content in (PHOTO, OTHER))
    assert one.partition("-")[0] == other.partition("-")[0] != one
    assert one != other
    plain = GenerateRequest(prompt="add a hat")
    assert full_fingerprint(plain, stream=False) == fingerprint(plain, stream=False)
    assert fingerprint(edit(PHOTO), stream=False) != fingerprint(plain, stream=False)
    assert fingerprint(edit("a.png"), stream=False) == fingerprint(edit("b.png"), stream=False)
    named = [journal_fingerprint(edit((name, PHOTO)), stream=False) for name in ("a.png", "b.png")]
    assert [each.rpartition("-")[0] for each in named] == [one, one]
    assert named[0] != named[1]
    assert journal_fingerprint(plain, stream=False) == fingerprint(plain, stream=False)


async def test_map_of_edits(
    server: Server, client: AsyncImages, photos: Path, tmp_path: Path
) -> None:
    """Requests and mappings are sent as edits, and the files are named after their inputs."""
    requests: list[Any] = [
        edit(photos / "IMG_1.png"),
        {
            "image": str(photos / "IMG_2.png"),
            "prompt": "add a hat",
            "mask": str(photos / "IMG_1.png"),
        },
        {"image": [PHOTO, photos / "IMG_3.png"], "prompt": "add a hat", "n": 2},
        "a cat",
    ]
    out = tmp_path / "out"
    run = client.map(requests, output_dir=out, size="1024x1024", input_fidelity="high")
    items = in_order(await everything(run))
    assert [item.ok for item in items] == [True] * 4
    assert [[path.name for path in item.paths] for item in items] == [
        ["000000-IMG_1.png"],
        ["000001-IMG_2.png"],
        ["000002-IMG_3.png"],
        ["000003-a-cat.png"],
    ]
    sent = {
        len(fields.get("image", ())): fields for fields in server.requests if "mask" not in fields
    }
    assert sent[1]["image"] == [("IMG_1.png", PHOTO)]
    assert [content for _, content in sent[2]["image"]] == [PHOTO, PHOTO]
    assert (sent[1]["input_fidelity"], sent[0].get("input_fidelity")) == ("high", None)
    (masked,) = (fields for fields in server.requests if "mask" in fields)
    assert masked["mask"] == [("IMG_1.png", PHOTO)]
    manifest = {line["index"]: line for line in lines(out / MANIFEST)}
    assert manifest[1]["parameters"]["image"] == ["IMG_2.png"]
    assert isinstance(items[1].request, EditRequest)


async def test_map_of_edits_resumed(
    server: Server, client: AsyncImages, photos: Path, tmp_path: Path
) -> None:
    """A changed photograph is edited again, an unchanged one never, whatever its path and name."""
    options: Any = {"output_dir": tmp_path / "out", "journal": tmp_path / "run.jsonl"}

    def requests(folder: Path) -> list[Any]:
        return [edit(path) for path in sorted(folder.iterdir())]

    assert all(item.ok for item in await everything(client.map(requests(photos), **options)))
    moved = photos.rename(tmp_path / "moved")
    (moved / "IMG_2.png").write_bytes(OTHER)
    items = in_order(await everything(client.map(requests(moved), **options)))
    assert [(item.ok, item.resumed) for item in items] == [
        (True, True),
        (True, False),
        (True, True),
    ]
    assert server.requests[3:] == [server.requests[3]]
    assert server.requests[3]["image"] == [("IMG_2.png", OTHER)]
    assert len(set(server.keys)) == 4
    (moved / "IMG_3.png").rename(moved / "IMG_3 (sea).png")
    items = await everything(client.map(requests(moved), **options))
    assert all(item.resumed for item in items)
    (moved / "IMG_0.png").write_bytes(make_png(9, 9))
    with pytest.raises(JournalError, match="number 0 "):
        await everything(client.map(requests(moved), **options))
    with pytest.raises(JournalError, match="number 0 "):
        await everything(client.map([edit(moved / "IMG_1.png", "add a scarf")], **options))
    assert len(server.requests) == 4


@pytest.mark.parametrize("journal", [False, True])
async def test_map_of_edits_with_bad_files(
    journal: bool, server: Server, client: AsyncImages, photos: Path, tmp_path: Path
) -> None:
    """A missing or broken file is the error of its item, and costs nothing."""
    (photos / "IMG_1.png").unlink()
    (photos / "IMG_2.png").write_text("not an image")
    options: Any = {"journal": tmp_path / "run.jsonl"} if journal else {}
    requests = [edit(photos / f"IMG_{number}.png") for number in (1, 2, 3)]
    for _ in range(2):
        items = in_order(await everything(client.map(requests, **options)))
        assert [item.ok for item in items] == [False, False, True]
        assert all(isinstance(item.error, InvalidRequestError) for item in items[:2])
        assert "IMG_1.png" in str(items[0].error)
        assert [item.error.billing for item in items if item.error] == ["not_sent"] * 2
    assert len(server.requests) == (1 if journal else 2)
    (photos / "IMG_1.png").write_bytes(PHOTO)
    (photos / "IMG_2.png").write_bytes(OTHER)
    assert all(item.ok for item in await everything(client.map(requests, **options)))


async def test_map_of_edits_whose_file_is_missing_later(
    server: Server, client: AsyncImages, photos: Path, tmp_path: Path
) -> None:
    """A missing file does not erase what the journal recorded for its request."""
    path, journal = photos / "IMG_1.png", tmp_path / "run.jsonl"
    released = hold(server)
    async with client.map([edit(path)], journal=journal):
        await server.wait_until(lambda: server.in_flight == 1)
    released.set()
    away = path.rename(tmp_path / "away")
    (item,) = await everything(client.map([edit(path)], journal=journal))
    assert isinstance(item.error, InvalidRequestError)
    away.rename(path)
    (item,) = await everything(client.map([edit(path)], journal=journal))
    assert item.ok
    assert len(set(server.keys)) == 1
    path.unlink()
    (item,) = await everything(client.map([edit(path)], journal=journal))
    assert isinstance(item.error, InvalidRequestError)
    path.write_bytes(PHOTO)
    (item,) = await everything(client.map([edit(path)], journal=journal))
    assert item.resumed


async def test_map_reads_inputs_when_their_turn_comes(
    server: Server, client: AsyncImages, photos: Path
) -> None:
    """A file may be written while the run is in progress, until its own request is sent."""
    late = photos / "late.png"
    released = hold(server)
    async with client.map([edit(photos / "IMG_1.png"), edit(late)], concurrency=1) as run:
        await server.wait_until(lambda: server.in_flight == 1)
        late.write_bytes(OTHER)
        released.set()
        assert [item.ok async for item in run] == [True, True]
