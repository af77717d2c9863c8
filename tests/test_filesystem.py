"""Files that are locked and flushed to disk."""

import errno
import os
from pathlib import Path

import pytest

from elkimg_async.files import write_atomically
from elkimg_async.filesystem import open_locked, sync_folder
from tests.helpers.file_systems import NO_SYNC, failing


def test_sync_folder_with_a_real_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk is an error, unlike a file system that cannot flush folders."""
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, os.fsync, folders_only=True))
    with pytest.raises(OSError, match=r"I/O|Input/output"):
        sync_folder(tmp_path)


@pytest.mark.parametrize("code", NO_SYNC)
def test_write_atomically_without_fsync(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is written where files cannot be flushed."""
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, folders_only=False))
    write_atomically(tmp_path / "file", b"elk")
    assert (tmp_path / "file").read_bytes() == b"elk"


def test_open_locked_of_a_file_in_use(tmp_path: Path) -> None:
    """A lock that is held elsewhere is an error even if locks are not required."""
    first = open_locked(tmp_path / "file")
    with pytest.raises(BlockingIOError):
        open_locked(tmp_path / "file", require_lock=False)
    os.close(first)
    os.close(open_locked(tmp_path / "file"))
