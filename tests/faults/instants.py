"""Ways for a process to die: inside its n-th file operation, or after a while."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable
from typing import Any

_OPERATIONS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "symlink", "fsync", "chmod")


class Counter:
    """Counts the instants before and after file operations, and in the middle of writing; kills at one of them.

    Args:
        fatal: the instant, counted from 1, at which this process kills itself; None only counts.
    """

    def __init__(self, fatal: int | None = None) -> None:
        self.fatal = fatal
        self.passed = 0

    def install(self) -> None:
        """Watch the operations of ``os`` that the package and its libraries write files with, in this process."""
        for name in _OPERATIONS:
            setattr(os, name, self._watched(getattr(os, name)))
        plain, plain_open = os.fdopen, builtins.open

        def watched_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            opened = self._watched(plain_open) if "w" in mode or "x" in mode else plain_open
            return opened(path, mode, *arguments, **options)

        def fdopen(descriptor: int, *arguments: Any, **options: Any) -> Any:
            stream = plain(descriptor, *arguments, **options)
            return _Slow(stream, self) if arguments[:1] == ("wb",) else stream

        os.fdopen = fdopen
        builtins.open = io.open = watched_open

    def tick(self) -> None:
        """One more instant has come."""
        self.passed += 1
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _watched(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.tick()
            result = operation(*arguments, **options)
            self.tick()
            return result

        return watched


class _Slow:
    """A stream that writes in two halves, with an instant between them."""

    def __init__(self, stream: Any, counter: Counter) -> None:
        self._stream = stream
        self._counter = counter

    def write(self, content: bytes) -> int:
        half = len(content) // 2
        self._stream.write(content[:half])
        self._stream.flush()
        self._counter.tick()
        self._stream.write(content[half:])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Slow:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
