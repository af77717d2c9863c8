"""Appending to files that one process at a time may use, and getting them onto the disk."""

import errno
import os
import sys
from pathlib import Path

from elkimg_async.errors import JournalError

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}
"""Errors of file systems that cannot flush a file or, like many network shares, a folder."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_file(descriptor: int) -> None:
    """Get what was written onto the disk, where the file system is able to."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(path: Path) -> None:
    """Get the names of new files onto the disk, where the file system is able to."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # it may be written to, and not listed
        return
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def open_locked(path: Path, *, require_lock: bool = True) -> int:
    """Open a file to append to, for this run alone; the lock ends with the process.

    Args:
        path: The file; it is created if it is missing.
        require_lock: Whether to fail if the file system has no locks.

    Raises:
        JournalError: If another run uses it, or a required lock cannot be had.
        OSError: If it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _lock(descriptor, path)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise JournalError(
            f"Another run is using {path}; wait until it ends, or choose other names."
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS and not require_lock:
            return descriptor
        os.close(descriptor)
        if error.errno not in _NO_LOCKS:
            raise
        raise JournalError(
            f"The file system of {path} has no file locks ({error.strerror}), so nothing keeps a "
            "second run from using it at the same time and paying twice. Choose a folder on a "
            "local disk, or pass require_lock=False if no other run can use it."
        ) from None
    return descriptor


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, path: Path) -> None:
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # no byte that is ever read or written
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, path: Path) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError  # another run has replaced the file meanwhile
