"""`elkimg_async.files`: complete files, on real file systems, and what is left after a
cancellation.
"""

import asyncio
import errno
import os
import shutil
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from elkimg_async.files import run_in_thread, write_atomically

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix's files")
CONTENT = bytes(range(256)) * 100


@unix
def test_write_through_a_symbolic_link(tmp_path: Path) -> None:
    """A link that the user named stays a link; a generated name replaces it."""
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, CONTENT, follow_links=True)
    assert link.is_symlink()
    assert target.read_bytes() == CONTENT
    write_atomically(link, b"new")
    assert not link.is_symlink()
    assert target.read_bytes() == CONTENT


@unix
def test_write_through_a_dangling_link(tmp_path: Path) -> None:
    """A link to a file that does not exist yet creates that file."""
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "later.png")
    write_atomically(link, CONTENT, follow_links=True)
    assert link.is_symlink()
    assert (tmp_path / "later.png").read_bytes() == CONTENT


@unix
async def test_write_to_a_fifo(tmp_path: Path) -> None:
    """A FIFO gets the content, and stays a FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = asyncio.create_task(asyncio.to_thread(fifo.read_bytes))
    await run_in_thread(
        lambda cancelled: write_atomically(fifo, CONTENT, follow_links=True, cancelled=cancelled)
    )
    assert await reading == CONTENT
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@unix
async def test_write_to_a_fifo_without_a_reader_can_be_cancelled(tmp_path: Path) -> None:
    """A FIFO without a reader blocks nothing once the task is cancelled."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = threading.Event()

    def write(cancelled: threading.Event) -> None:
        started.set()
        write_atomically(fifo, CONTENT, follow_links=True, cancelled=cancelled)

    writing = asyncio.create_task(run_in_thread(write))
    await asyncio.to_thread(started.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


@unix
def test_write_to_a_device() -> None:
    """A device node receives the content and remains."""
    write_atomically(Path("/dev/null"), CONTENT, follow_links=True)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@unix
def test_write_keeps_permissions(tmp_path: Path) -> None:
    """A file that is replaced keeps its permissions."""
    path = tmp_path / "boat.png"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, CONTENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() == CONTENT


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs mount")
def test_write_into_a_file_that_cannot_be_renamed(tmp_path: Path) -> None:
    """A file that is a mount point, as in a container, is written in place."""
    source, target = tmp_path / "source", tmp_path / "boat.png"
    source.write_bytes(b"old")
    target.write_bytes(b"")
    if os.system(f"mount --bind {source} {target} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        write_atomically(target, CONTENT)
        assert source.read_bytes() == CONTENT
    finally:
        os.system(f"umount {target}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boat.png", "source"]


def refuse_rename(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let renaming and linking fail, as on file systems without them."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, fail)


NO_RENAME = [errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP]


@pytest.mark.parametrize("code", NO_RENAME)
@pytest.mark.parametrize("overwrite", [True, False])
def test_write_where_nothing_can_be_renamed(
    code: int, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file and an old one are written in place, without a part file."""
    refuse_rename(code, monkeypatch)
    path = tmp_path / "boat.png"
    write_atomically(path, CONTENT, overwrite=overwrite)
    assert path.read_bytes() == CONTENT
    path.chmod(0o640)
    if overwrite:
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert sys.platform == "win32" or stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["boat.png"]


def test_write_where_renaming_really_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk is an error, and leaves nothing behind."""
    refuse_rename(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match=r"I/O|Input/output"):
        write_atomically(tmp_path / "boat.png", CONTENT)
    assert list(tmp_path.iterdir()) == []


@unix
def test_write_in_place_follows_no_link_of_a_generated_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be renamed, a generated name still does not follow a link."""
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    refuse_rename(errno.EPERM, monkeypatch)
    with pytest.raises(OSError, match=r"symbolic links"):
        write_atomically(link, CONTENT)
    assert target.read_bytes() == b"old"
    write_atomically(link, CONTENT, follow_links=True)
    assert target.read_bytes() == CONTENT


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs mount")
def test_write_to_a_full_file_system(tmp_path: Path) -> None:
    """A file that does not fit leaves nothing, and an old file as it was."""
    if os.system(f"mount -t tmpfs -o size=64k none {tmp_path} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        write_atomically(tmp_path / "boat.png", b"old")
        for name in ("boat.png", "new.png"):
            with pytest.raises(OSError, match="No space left"):
                write_atomically(tmp_path / name, CONTENT * 10)
        assert [path.name for path in tmp_path.iterdir()] == ["boat.png"]
        assert (tmp_path / "boat.png").read_bytes() == b"old"
    finally:
        os.system(f"umount {tmp_path}")


@unix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_write_over_the_file_of_another_user(tmp_path: Path) -> None:
    """In a sticky folder, where another user's file cannot be replaced, it is written in place."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o1777)
        path = folder / "boat.png"
        path.write_bytes(b"old")
        path.chmod(0o666)
        os.seteuid(65534)
        try:
            write_atomically(path, CONTENT)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == CONTENT
        assert path.stat().st_uid == 0
        assert [path.name for path in folder.iterdir()] == ["boat.png"]
    finally:
        shutil.rmtree(folder)


def test_write_leaves_nothing_once_cancelled(tmp_path: Path) -> None:
    """A write cancelled before the rename leaves neither a file nor a part of one."""
    cancelled = threading.Event()
    cancelled.set()
    write_atomically(tmp_path / "boat.png", CONTENT, cancelled=cancelled)
    assert list(tmp_path.iterdir()) == []


def test_write_to_a_folder(tmp_path: Path) -> None:
    """A path that is a folder is an error that says so."""
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(tmp_path, CONTENT)


async def test_cancelled_thread_is_awaited(tmp_path: Path) -> None:
    """A cancelled task ends only after its thread, which is stopping."""
    started, ended = threading.Event(), threading.Event()

    def work(cancelled: threading.Event) -> None:
        started.set()
        assert cancelled.wait(30)
        ended.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
