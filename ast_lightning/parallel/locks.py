"""Locks on folders, so that two processes never write the same files.

The kernel releases a lock when the process that holds it ends for any reason. The lock of ``parent/name`` is the file
``parent/.locks/name.lock``; a JSON file beside it names the holder. Both are small and are not deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout

from ast_lightning.storage.files import read_json, write_json

_LOOK = 0.01  # seconds, far longer than held_by of another process takes
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@cache
def has_locks(folder: Path) -> bool:
    """Whether the file system of ``folder``, which must exist, has locks; some network file systems have none."""
    with TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


class FolderLock:
    """The lock for writing into ``folder``, which need not exist. Leaving a ``with`` block releases it.

    Args:
        folder: the folder to lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        where = folder.parent / ".locks"
        self._path = where / f"{folder.name}.lock"
        self._file = FileLock(self._path)
        self._note = where / f"{folder.name}.holder.json"

    def take(self, seconds: float = 0) -> bool:
        """Try for up to ``seconds`` to take the lock; a negative number waits without limit.

        Returns:
            Whether this process has the lock; always True if the file system has no locks.
        """
        self._note.parent.mkdir(parents=True, exist_ok=True)
        if not has_locks(self._note.parent):
            return True
        try:
            # held_by of another process takes the lock for an instant: try twice, even without waiting
            self._file.acquire(timeout=seconds or _LOOK, poll_interval=0.2 if seconds else _LOOK)
        except Timeout:
            return False
        try:
            write_json(self._note, {"process": os.getpid(), "host": socket.gethostname()})
        except BaseException:
            self.release()
            raise
        return True

    def holder(self) -> str:
        """The holder as recorded beside the lock, e.g. ``process 4711 on host``."""
        try:
            note = read_json(self._note)
            return f"process {note['process']} on {note['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def held_by(self) -> str | None:
        """Return the present holder, which may be this process. This writes nothing and does not affect the holder.

        Returns:
            The same text as :meth:`holder`; None if the lock is free. A lock that cannot be read counts as held.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return self.holder()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # it is held, or the file system has no locks
            return None if error.errno in _NO_LOCKS else self.holder()
        finally:
            os.close(descriptor)
        return None

    def release(self) -> None:
        """Release the lock."""
        self._file.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
