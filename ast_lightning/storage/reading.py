"""Conversion of errors while reading files into one-line messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ast_lightning.errors import ConfigurationError

BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Exceptions raised for damaged files, by JSON, by checksums and by code that uses their content."""
UNREADABLE = "make it readable for this user, or check the disk; do not delete it, as it may be intact"


@contextmanager
def reading(path: Path, remedy: str, option: str, value: object) -> Iterator[None]:
    """Convert errors of reading a file into a :class:`ConfigurationError` that names the file.

    Args:
        path: the file that is read in the ``with`` block.
        remedy: what to do if it is missing or damaged.
        option: the option that specifies the file.
        value: the value of that option: the file or its folder.

    Raises:
        ConfigurationError: instead of an ``OSError`` and of the errors that damaged content causes.
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
