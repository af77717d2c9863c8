"""Files that are appended to: locked by one process, and flushed to disk."""

import errno
import os
import sys
from pathlib import Path

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}
"""Errors of file systems that cannot flush files or, like many network shares, folders."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LocksUnavailableError(OSError):
    """The file system has no file locks."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_file(descriptor: int) -> None:
    """Flush a file to disk, if the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(path: Path) -> None:
    """Flush the names of new files in a folder to disk, if the file system supports that."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # the folder is writable, but cannot be listed
        return
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def open_locked(path: Path, *, require_lock: bool = True) -> int:
    """Open a file for appending, and lock it; the lock ends with the process.

    Args:
        path: The file; it is created if it is missing.
        require_lock: Whether to fail if the file system has no locks.

    Raises:
        BlockingIOError: If the file is locked already.
        LocksUnavailableError: If a required lock is not available.
        OSError: If the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _lock(descriptor, path)
    except OSError as error:
        if error.errno in _NO_LOCKS and not require_lock:
            return descriptor
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise LocksUnavailableError(*error.args) from None
        raise
    return descriptor


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, path: Path) -> None:
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # a byte that is never read or written
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None

else:
    import fcntl

    def _lock(descriptor: int, path: Path) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError(errno.EAGAIN, "The file was replaced in the meantime")
