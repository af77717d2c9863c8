"""Runs whose process is killed."""

import asyncio
import contextlib
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async.batch.journal import JournalIndex
from elkimg_async.batch.storage import MANIFEST
from elkimg_async.local import LocalServer
from elkimg_async.media_types import media_type_of
from tests.helpers.runs import lines, make_png


async def killed_until_done(
    folder: Path, mode: str, kills: int, chance: random.Random, count: int = 60
) -> None:
    """Start a run again and again, kill it at random moments, and check everything at the end.

    The modes are `off` (no idempotency keys), `replay`, and `edits`, which is replay with
    photographs.
    """
    photos = folder.parent / f"{folder.name}-photos"
    if mode == "edits":
        photos.mkdir(parents=True)
        for number in range(count):
            (photos / f"photo {number}.png").write_bytes(make_png(64 + number % 3, 64))
    given = [str(photos)] if mode == "edits" else []
    package = str(Path(elkimg_async.__file__).parent.parent)
    journal = folder / "journal.jsonl"
    async with LocalServer(light=True, delay=0.02) as server:
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *sys.path]),
            "ELKAPI_API_KEY": server.api_key,
            "ELKAPI_BASE_URL": server.base_url,
        }
        allowed, finished, replay = count, set[int](), JournalIndex()
        for number in range(kills + 1):
            seen = len(server.requests)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(Path(__file__).parents[1] / "helpers/map_until_done.py"),
                *(str(folder), str(count), mode, *given),
                env=variables,
                stderr=subprocess.PIPE,
            )
            ended = asyncio.create_task(process.communicate())
            if number < kills:
                goal = seen + chance.randint(0, count // (kills + 1) + 8)
                waiting = asyncio.create_task(
                    server.wait_until(lambda goal=goal: len(server.requests) >= goal)  # type: ignore[misc]
                )
                await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                await asyncio.sleep(chance.random() * 0.05)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            _, stderr = await ended
            assert process.returncode in ((0, -9) if number < kills else (0,)), stderr.decode()
            requested = {
                int(r.fields["prompt"].split()[1])
                for r in list(server.requests)[seen:]
                if "prompt" in r.fields
            }
            assert not requested & finished, "a finished request was sent again"
            replay = JournalIndex()
            if journal.exists():
                for line in journal.read_bytes().splitlines(keepends=True):
                    replay.feed(line)
            assert server.generations <= replay.images, "more was made than the journal knows of"
            states = [replay.state(index) for index in range(count)]
            finished = {index for index in range(count) if states[index] == "done"}
            if number < kills:
                allowed += states.count("sent")
        assert finished == set(range(count))
        generations = server.generations
    assert mode == "off" or replay.images == count
    assert count <= generations <= allowed if mode == "off" else generations == count
    manifest = lines(folder / MANIFEST)
    assert sorted(line["index"] for line in manifest) == list(range(count))
    names = {file["name"] for line in manifest for file in line["files"]}
    assert {path.name for path in folder.iterdir()} == names | {MANIFEST, journal.name}
    for row in manifest:
        (file,) = row["files"]
        assert row["id"] == row["index"]
        assert mode != "edits" or file["name"] == f"{row['index']:06d}-photo-{row['index']}.png"
        content = (folder / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            file["bytes"],
            file["sha256"],
        )
        assert media_type_of(content) == "image/png"


@pytest.mark.parametrize("mode", ["off", "replay", "edits"])
async def test_run_killed(mode: str, tmp_path: Path) -> None:
    """After `kill -9` at random moments, all images are complete.

    Only what was in flight was generated twice.
    """
    await killed_until_done(tmp_path, mode, 3, random.Random(f"{mode}-5"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["off", "replay", "edits"])
async def test_run_killed_often(mode: str, tmp_path: Path) -> None:
    """The same holds for ELKIMG_KILLED_RUNS runs with ten kills each."""
    for number in range(int(os.environ.get("ELKIMG_KILLED_RUNS", "1"))):
        chance = random.Random(f"{mode}-{number}")
        await killed_until_done(tmp_path / f"{number}", mode, 10, chance, count=120)
