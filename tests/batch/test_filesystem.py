"""Runs on file systems with missing features, such as network shares."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import AsyncImages, JournalError
from tests.helpers.file_systems import NO_LOCKS, NO_SYNC, failing
from tests.helpers.runs import Server, everything


@pytest.mark.parametrize("code", NO_SYNC)
@pytest.mark.parametrize("folders_only", [True, False])
async def test_journal_without_fsync(
    code: int,
    folders_only: bool,
    server: Server,
    client: AsyncImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run works and resumes where folders, or files, cannot be flushed."""
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, folders_only=folders_only))
    options: Any = {"journal": tmp_path / "run.jsonl"}
    if folders_only:
        options["output_dir"] = tmp_path / "out"
    assert [item.ok for item in await everything(client.map(["a", "b"], **options))] == [True] * 2
    again = await everything(client.map(["a", "b"], **options))
    assert [item.resumed for item in again] == [True] * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", NO_LOCKS)
@pytest.mark.parametrize("place", ["journal", "output_dir"])
async def test_journal_without_locks(
    code: int,
    place: str,
    server: Server,
    client: AsyncImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file system without locks is an error, unless the option allows it."""
    monkeypatch.setattr(fcntl, "flock", failing(code, fcntl.flock, folders_only=False))
    options: Any = {place: tmp_path / "run"}
    with pytest.raises(JournalError, match=r"no file locks.*require_lock=False"):
        await everything(client.map(["a"], **options))
    assert not server.requests
    (item,) = await everything(client.map(["a"], require_lock=False, **options))
    assert item.ok
