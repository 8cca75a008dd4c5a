"""Locks that the system releases when a process ends, however it ends."""

import errno
import fcntl
import os
import warnings

# What file systems answer that have no such locks: Lustre, some of NFS (EBADF for directories).
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}
_said: list[str] = []  # the path of which it was said that it has no locks


def try_lock(handle: int, path: str | os.PathLike[str]) -> bool:
    """Lock an open file or directory for this process; False if another process holds the lock.

    A file system without locks is reported once, and the work goes on unlocked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say_once(os.fspath(path))
    return True


def _say_once(path: str) -> None:
    """Once in a process, whatever the path."""
    if not _said:
        _said.append(path)
        warnings.warn(
            f"{path}: its file system has no locks (flock): let no two processes write the same",
            stacklevel=4,
        )
