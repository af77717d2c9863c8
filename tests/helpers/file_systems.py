"""File systems with missing features, such as network shares."""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

NO_SYNC = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]


def failing(code: int, real: Callable[..., Any], *, folders_only: bool) -> Callable[..., Any]:
    """Return the system call as it behaves on a file system that lacks it."""

    def call(descriptor: int, *arguments: Any) -> Any:
        if folders_only and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return real(descriptor, *arguments)
        raise OSError(code, os.strerror(code))

    return call
