"""`elkimg_async.files`: complete files, on real file systems, and what is left after a
cancellation.
"""

import asyncio
import os
import stat
import sys
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
