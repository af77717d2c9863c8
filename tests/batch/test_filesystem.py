"""Files on file systems with missing features, such as network shares."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import AsyncImages, JournalError
from elkimg_async.batch.filesystem import open_locked, sync_folder
from tests.helpers.runs import Server, everything

NO_SYNC = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]


def failing(code: int, real: Callable[..., Any], *, folders_only: bool) -> Callable[..., Any]:
    """Return the system call as a file system without it has it."""

    def call(descriptor: int, *arguments: Any) -> Any:
        if folders_only and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return real(descriptor, *arguments)
        raise OSError(code, os.strerror(code))

    return call


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


def test_sync_folder_with_a_real_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk is an error, unlike a file system that cannot flush folders."""
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, os.fsync, folders_only=True))
    with pytest.raises(OSError, match=r"I/O|Input/output"):
        sync_folder(tmp_path)


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


def test_open_locked_of_a_file_in_use(tmp_path: Path) -> None:
    """A lock that another run holds is an error even if locks are not required."""
    first = open_locked(tmp_path / "file")
    with pytest.raises(JournalError, match="Another run"):
        open_locked(tmp_path / "file", require_lock=False)
    os.close(first)
    os.close(open_locked(tmp_path / "file"))
