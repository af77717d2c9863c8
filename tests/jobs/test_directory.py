"""Folders of jobs on file systems with missing features, such as network shares."""

import fcntl
import os
from pathlib import Path

import pytest

from elkimg_async import AsyncImages, StoreError
from elkimg_async.jobs import DirectoryStore, ImageJobs
from elkimg_async.local import LocalServer
from tests.helpers.file_systems import NO_LOCKS, NO_SYNC, failing


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
