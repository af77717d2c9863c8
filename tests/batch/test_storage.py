"""The journal, the manifest and the images on disk."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from elkimg_async import AsyncImages, ConfigurationError, JournalError, filesystem
from elkimg_async.batch.storage import MANIFEST, OutputFolder, RunStore
from tests.helpers.raw_server import JPEG, PNG
from tests.helpers.runs import Fields, Server, everything, images, in_order, lines


async def test_store_images_and_manifest(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Names show the request, extensions the content.

    The manifest has prompt, parameters, usage and hashes.
    """

    async def respond(fields: Fields) -> Fields | web.Response:
        return images(*[PNG, JPEG, PNG][: fields.get("n", 1)])

    server.respond = respond
    folder = tmp_path / "deep" / "out"
    requests: list[Any] = [
        "A Small  kitten, in a sunny garden — at noon",
        {"prompt": "小船", "n": 2},
    ]
    items = in_order(await everything(client.map(requests, output_dir=folder, size="1024x1024")))
    assert [item.result for item in items] == [None, None]
    assert [path.name for item in items for path in item.paths] == [
        "000000-a-small-kitten-in-a-sunny.png",
        "000001-小船-1.png",
        "000001-小船-2.jpg",
    ]
    assert items[1].paths[1].read_bytes() == JPEG
    manifest = sorted(lines(folder / MANIFEST), key=lambda line: line["index"])
    assert manifest[1]["prompt"] == "小船"
    assert manifest[1]["parameters"] == {"model": "gpt-image-1.5", "n": 2, "size": "1024x1024"}
    assert manifest[1]["usage"]["total_tokens"] == 10
    assert [file["sha256"] for file in manifest[1]["files"]] == [
        hashlib.sha256(content).hexdigest() for content in (PNG, JPEG)
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [MANIFEST, *(path.name for item in items for path in item.paths)]
    )


async def test_store_in_use(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """A second run on the same folder or journal is rejected, and changes nothing."""
    part = tmp_path / f".{'0' * 16}.part"
    async with client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j.jsonl"):
        part.write_bytes(b"of the first run")
        for options in ({"output_dir": tmp_path}, {"journal": tmp_path / "j.jsonl"}):
            with pytest.raises(JournalError, match="Another run"):
                await everything(client.map(["b"], **options))  # type: ignore[arg-type]
        assert part.exists()
    await everything(client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j.jsonl"))
    assert not part.exists()


@pytest.mark.parametrize("where", ["output_dir", "journal"])
async def test_store_in_an_unusable_place(
    where: str, client: AsyncImages, server: Server, tmp_path: Path
) -> None:
    """An unusable folder is an error before anything is sent."""
    (tmp_path / "file").write_text("x")
    options: Any = {where: tmp_path / "file" / "below"}
    with pytest.raises(
        (ConfigurationError, JournalError),
        match=r"(cannot be used|cannot go to).*(directory|exists)",
    ):
        await everything(client.map(["a"], **options))
    with pytest.raises(JournalError, match="not a journal"):
        await everything(client.map(["a"], journal=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"
    assert not server.requests


async def test_store_with_a_torn_journal(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """An incomplete last line of a killed process is cut off, and the next lines are complete."""
    journal = tmp_path / "j.jsonl"
    options: Any = {"journal": journal, "output_dir": tmp_path, "concurrency": 1}
    await everything(client.map(["0", "1"], **options))
    whole = journal.read_bytes()
    for cut in (1, 2, 40, len(whole) - 3):
        journal.write_bytes(whole[:-cut])
        manifest = (tmp_path / MANIFEST).read_bytes()
        (tmp_path / MANIFEST).write_bytes(manifest[:-3])
        items = await everything(client.map(["0", "1"], **options))
        assert all(item.ok for item in items)
        lines(journal)
        assert journal.read_bytes().endswith(b"\n")
    assert {line["index"] for line in lines(tmp_path / MANIFEST)} <= {0, 1}
    journal.write_bytes(whole.replace(b'"index":0', b'"index":zero', 1))
    with pytest.raises(JournalError, match="Line 2"):
        await everything(client.map(["0", "1"], **options))


async def test_store_repairs_the_manifest(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A request that is in the manifest but not in the journal is removed from the manifest.

    Other runs' lines stay.
    """
    options: Any = {"journal": tmp_path / "j", "output_dir": tmp_path, "concurrency": 1}
    await everything(client.map(["0", "1"], **options))
    journal = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(journal[:-1]))
    other = {**lines(tmp_path / MANIFEST)[1], "key": "of another run"}
    with (tmp_path / MANIFEST).open("a") as file:
        file.write(json.dumps(other) + "\n")
    await everything(client.map(["0", "1"], **options))
    keys = [line["key"] for line in lines(tmp_path / MANIFEST)]
    assert keys == [server.keys[0], "of another run", server.keys[2]]
    assert server.keys[1] == server.keys[2]


@pytest.mark.skipif(sys.platform == "win32", reason="it replaces no file that is open")
@pytest.mark.parametrize("moment", ["opened before", "just before", "just after"])
def test_store_locked_during_repair(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run cannot lock the folder, even if it has opened the old manifest."""
    manifest = tmp_path / MANIFEST
    manifest.write_text("torn")
    store, lock, replace = RunStore(None, OutputFolder(tmp_path)), filesystem._lock, Path.replace

    def intrude() -> None:
        with pytest.raises(BlockingIOError):
            filesystem.open_locked(manifest)
        intruded.append(moment)

    def lock_late(descriptor: int, path: Path) -> None:
        monkeypatch.setattr(filesystem, "_lock", lock)
        store.open()
        lock(descriptor, path)

    def replace_watched(part: Path, path: Path) -> Path:
        if moment == "just before":
            intrude()
        replaced = replace(part, path)
        if moment == "just after":
            intrude()
        return replaced

    intruded: list[str] = []
    monkeypatch.setattr(Path, "replace", replace_watched)
    if moment == "opened before":
        monkeypatch.setattr(filesystem, "_lock", lock_late)
        intrude()
    else:
        store.open()
    intrude()
    store.close()
    assert intruded == [moment] * 2
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert manifest.read_bytes() == b""
    os.close(filesystem.open_locked(manifest))
