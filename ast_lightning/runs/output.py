"""Check that the output folder can be written to, before any work, and explain the system's write errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import has_locks
from ast_lightning.reporting import keep_logs_in, local_rank

_FULL = "free disk space and rerun the command without fresh=true to resume"
_CLOSED = "make the folder writable, or set another output_dir"
_NO_FOLDER = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)  # the last two: the path is a file
DISK_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys(_NO_FOLDER, _CLOSED),
    errno.ENAMETOOLONG: "set an output_dir with a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and rerun the command to resume",
}
"""What to do, by ``errno``."""


def prepare_output(folder: Path) -> None:
    """Check that ``folder`` can be created and that files can be written and locked there; the test files are deleted.

    Error logs of this process are written into that folder. Prints a note if the file system has no locks.

    Raises:
        ConfigurationError: the folder cannot be created or written to.
    """
    folder = folder.expanduser()
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    try:
        if there == path:
            locks = _try(path)
        else:
            with TemporaryDirectory(prefix=".probe_", dir=there) as probe:
                new = Path(probe) / path.relative_to(there)
                new.mkdir(parents=True)
                locks = _try(new)
    except OSError as error:
        error.filename = None  # the path of the test folder, which the user does not know
        raise disk_trouble("output_dir", folder, error) from error
    keep_logs_in(folder / "errors")
    if not locks and local_rank() == 0:
        print(
            f"note: output_dir={folder} does not support file locks: run only one command at a time there", flush=True
        )


def _try(folder: Path) -> bool:
    """Write a nameless file, which disappears even if the process is killed; return whether it can be locked."""
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        return has_locks(folder)


def disk_trouble(option: str, folder: object, error: OSError) -> ConfigurationError:
    """Convert a system error about a file below ``folder``, the value of ``option``, to a ConfigurationError."""
    problem = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if error.errno == errno.ENOENT:
        problem, remedy = "it is a link to a folder that does not exist", "make that folder, or set another output_dir"
        return ConfigurationError(option, folder, problem, remedy)
    return ConfigurationError(
        option, folder, problem, DISK_REMEDIES.get(error.errno or 0, _CLOSED).replace("output_dir", option)
    )
