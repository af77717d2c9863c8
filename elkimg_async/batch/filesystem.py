"""Files that only one process at a time may append to, flushed to disk."""

import errno
import os
import sys
from pathlib import Path

from elkimg_async.errors import JournalError

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}
"""Errors of file systems that cannot flush files or, like many network shares, folders."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


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
        JournalError: If another run uses it, or a required lock is not available.
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
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # a byte that is never read or written
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, path: Path) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError  # another run has replaced the file in the meantime
