"""What goes wrong while a file is read, as one line for its user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ast_lightning.errors import ConfigurationError

BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file raises: JSON, a checksum, what relies on its content."""
UNREADABLE = "let this user read it, or check the disk: it need not be damaged, so delete nothing"


@contextmanager
def reading(path: Path, remedy: str, option: str, value: object) -> Iterator[None]:
    """Name the file in place of an error of reading it.

    Args:
        path: the file that is read in the ``with`` block.
        remedy: what to do where it is missing or damaged.
        option: the option that led to the file.
        value: the value of that option: the file, or the folder that it is in.

    Raises:
        ConfigurationError: in place of an ``OSError`` and of the errors that damaged content leads to.
    """
    name = "it" if path == value else path
    try:
        yield
    except ConfigurationError:
        raise
    except FileNotFoundError as error:
        raise ConfigurationError(option, value, f"{name} is missing", remedy) from error
    except OSError as error:
        problem = f"{name} cannot be read ({error.strerror or error})"
        raise ConfigurationError(option, value, problem, UNREADABLE) from error
    except BROKEN as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigurationError(option, value, f"{name} cannot be used: {what}", remedy) from error
