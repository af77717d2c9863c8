"""Atomic file writes, and functions in threads that can be cancelled."""

import asyncio
import contextlib
import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from elkimg_async.filesystem import sync_file

T = TypeVar("T")

_NO_RENAME = {errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS, errno.EXDEV}
_NO_RENAME |= {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Why a file can be written but not replaced: a bind mount, a read-only folder, object storage."""
_FIFO_POLL = 0.05  # seconds between two attempts to open a FIFO that has no reader yet


async def run_in_thread(function: Callable[[threading.Event], T]) -> T:
    """Run a function in a worker thread; on cancellation, wait until it has ended.

    The function receives an event that is set on cancellation, so that it can stop early and clean
    up. Cancellation takes effect at once while the function is still waiting for a free thread.
    """
    cancelled, starting = threading.Event(), threading.Lock()
    started = False

    def run() -> T:
        nonlocal started
        with starting:
            if cancelled.is_set():
                raise asyncio.CancelledError
            started = True
        return function(cancelled)

    running = asyncio.get_running_loop().run_in_executor(None, run)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with starting:
            cancelled.set()
        while started and not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue
        if running.done() and not running.cancelled():
            running.exception()  # mark it as retrieved
        raise


def write_atomically(
    target: Path,
    content: bytes,
    *,
    follow_links: bool = False,
    overwrite: bool = True,
    cancelled: threading.Event | None = None,
) -> None:
    """Write a file atomically, replacing a file of the same name.

    A new file is written beside the target and renamed. Where that is not possible (the target is a
    mount point, its folder is not writable, or the file system cannot rename), and for FIFOs and
    devices, the content is written into the target itself.

    Args:
        target: The file. An existing one keeps its permissions.
        content: What to write.
        follow_links: Whether to write through a symbolic link, and to FIFOs and devices, as a shell
            redirection does. False replaces whatever has the name, as suits generated names.
        overwrite: Whether an existing file may be replaced.
        cancelled: Stops the write, without leaving anything behind, once it is set. None: never.

    Raises:
        FileExistsError: If the file exists and `overwrite` is False.
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written.
    """
    # What /dev/stdout and /dev/fd/N lead to may have no path of its own, so it is not resolved.
    if follow_links and target.is_symlink() and (target.is_file() or not target.exists()):
        target = target.resolve()
    try:
        existing = target.stat() if follow_links else target.lstat()
    except FileNotFoundError:
        existing = None
        if not target.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "The folder does not exist; create it first", str(target.parent)
            ) from None
    if existing is not None and not overwrite:
        raise FileExistsError(errno.EEXIST, "The file exists already", str(target))
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise IsADirectoryError(errno.EISDIR, "The path is a folder; name a file", str(target))
    if existing is not None and follow_links and not stat.S_ISREG(existing.st_mode):
        _write_special(target, content, cancelled)
        return
    try:
        _replace(target, content, existing, overwrite, cancelled)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        if cancelled is None or not cancelled.is_set():
            _write_in_place(target, content, existing, follow_links=follow_links)


def write_temporary(content: bytes, *, prefix: str, suffix: str) -> Path:
    """Write a paid image that cannot be saved to a new temporary file, and return its path.

    Raises:
        OSError: If it cannot be written; no file is left behind.
    """
    descriptor, name = tempfile.mkstemp(suffix, prefix)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def is_special(path: Path) -> bool:
    """Return whether a path is a symbolic link, FIFO or device, whose name is not to be changed."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _replace(
    target: Path,
    content: bytes,
    existing: os.stat_result | None,
    overwrite: bool,
    cancelled: threading.Event | None,
) -> None:
    part = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            if existing is not None and stat.S_ISREG(existing.st_mode) and hasattr(os, "fchmod"):
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.fchmod(file.fileno(), stat.S_IMODE(existing.st_mode))
            file.write(content)
            file.flush()
            sync_file(file.fileno())
        if cancelled is not None and cancelled.is_set():
            return
        if overwrite:
            part.replace(target)
        else:
            _create(part, target, content)
    finally:
        part.unlink(missing_ok=True)


def _write_in_place(
    target: Path, content: bytes, existing: os.stat_result | None, *, follow_links: bool
) -> None:
    """Write into the target itself; remove a new one that could not be completed."""
    flags = os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    flags |= os.O_CREAT | os.O_EXCL if existing is None else os.O_TRUNC
    descriptor = os.open(target, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:
        if existing is None:
            target.unlink(missing_ok=True)
        raise


def _create(part: Path, target: Path, content: bytes) -> None:
    """Move the finished file to its name, unless another file has that name by now."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb") as file:
            file.write(content)


def _write_special(target: Path, content: bytes, cancelled: threading.Event | None) -> None:
    """Write to a FIFO or a device; a FIFO waits for a reader until cancelled."""
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            break
        except OSError as error:
            if error.errno != errno.ENXIO or cancelled is None or cancelled.wait(_FIFO_POLL):
                raise
    if hasattr(os, "set_blocking"):
        os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
