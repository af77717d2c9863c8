"""`DirectoryStore` on full disks, and on file systems with missing features."""

import asyncio
import errno
import fcntl
import os
import sys
import tempfile
from pathlib import Path

import pytest

from elkimg_async import AsyncImages, StoreError
from elkimg_async.jobs import DirectoryStore, ImageJobs, Job
from elkimg_async.local import LocalServer
from tests.helpers.file_systems import NO_LOCKS, NO_SYNC, failing
from tests.helpers.jobs import COMPLETED, client_of, partial
from tests.helpers.raw_server import DONE, PNG, RawServer, event, open_stream


@pytest.mark.parametrize("code", NO_SYNC)
async def test_directory_without_fsync(
    code: int, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are stored where files cannot be flushed."""
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, folders_only=False))
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        async with ImageJobs(client, store=DirectoryStore(tmp_path)) as jobs:
            await jobs.start("an elk", id="one")
            image = (await jobs.result("one"))[0].content
        async with ImageJobs(client, store=DirectoryStore(tmp_path)) as jobs:
            assert (await jobs.result("one"))[0].content == image


@pytest.mark.parametrize("code", NO_LOCKS)
async def test_directory_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without locks is an error that names another store."""
    monkeypatch.setattr(fcntl, "flock", failing(code, fcntl.flock, folders_only=False))
    with pytest.raises(StoreError, match=r"no file locks.*RedisStore"):
        await DirectoryStore(tmp_path).open(None)


async def test_directory_in_use(tmp_path: Path) -> None:
    """A second store in the same folder is an error until the first is closed."""
    first, second = DirectoryStore(tmp_path), DirectoryStore(tmp_path)
    await first.open(None)
    with pytest.raises(StoreError, match=r"Another process.*RedisStore"):
        await second.open(None)
    await first.aclose()
    await second.open(None)
    await second.aclose()


async def test_directory_listed_while_jobs_are_stored(tmp_path: Path) -> None:
    """A list of jobs is complete and does not fail although a thread stores more of them."""
    store, interval = DirectoryStore(tmp_path), sys.getswitchinterval()

    async def fill(name: str) -> None:
        for number in range(50):
            job = Job(
                id=f"{name}{number}", prompt="an elk", created_at=0, first_id=1, fingerprint=""
            )
            await store.create(job, [])

    await store.open(None)
    filling = [asyncio.create_task(fill(name)) for name in "abcd"]
    sys.setswitchinterval(1e-6)  # threads alternate as often as they can
    try:
        known = 0
        while not all(task.done() for task in filling):
            known, before = len(await store.jobs()), known
            assert known >= before
            await asyncio.sleep(0)
        assert len(await store.jobs()) == 200
    finally:
        sys.setswitchinterval(interval)
        await asyncio.gather(*filling)
        await store.aclose()


async def test_directory_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is paid for waits until there is room, and then delivers its image."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    reply = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        client_of(raw_server) as client,
        ImageJobs(client, store=DirectoryStore(tmp_path)) as jobs,
    ):
        await jobs.start("an elk", id="one")
        events = jobs.events("one")
        await anext(events)
        with monkeypatch.context() as full:
            failed = fill_disk(full)
            finish.set()
            await failed.wait()
            with pytest.raises(StoreError, match="No space left"):
                await jobs.start("a fox", id="two")
        assert [each.image.content async for each in events] == [PNG]
        assert (await jobs.get("one")).state == "done"
        assert [job.id for job in await jobs.list()] == ["one"]
        assert len(raw_server.requests) == 1


async def test_directory_on_a_disk_that_stays_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end, an image that does not fit is written elsewhere, and the log says where."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(COMPLETED), DONE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    async with (
        RawServer([head, finish, *chunks, b"0\r\n\r\n"]) as raw_server,
        client_of(raw_server) as client,
    ):
        jobs = ImageJobs(client, store=DirectoryStore(tmp_path / "jobs"), grace=0.01)
        async with jobs:
            await jobs.start("an elk", id="one")
            await raw_server.wait_until(lambda: bool(raw_server.requests))
            with monkeypatch.context() as full:
                failed = fill_disk(full)
                finish.set()
                await failed.wait()
                await jobs.aclose()
    [rescued] = (tmp_path / "elsewhere").iterdir()
    assert rescued.read_bytes() == PNG
    assert rescued.suffix == ".png"
    assert f"'one' could not be stored, and is in {rescued}" in caplog.text


def fill_disk(full: pytest.MonkeyPatch) -> asyncio.Event:
    """Let every file be rejected, as on a full disk; the event is set by the first one."""
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def no_room(descriptor: int) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full.setattr(os, "fsync", no_room)
    return failed
