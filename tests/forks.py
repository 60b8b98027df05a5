"""Scripts in processes that are forked from one with all imports done: these take longer than most of the scripts.

A test starts ``[*python(), "distill.py", …]`` in place of ``[sys.executable, "distill.py", …]``. That program is
``tests/forked.py``, which hands its arguments, folder, environment, and standard streams to a process that imported the
commands once (``python -m tests.forks SOCKET``). A copy of that process becomes the script; whoever started the program
sees its output and its exit status, and can send it signals.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
_IMPORTS = ("train_experts", "distill", "evaluate")


def python() -> list[str]:
    """The words that start a script as ``python`` does, with one thread."""
    if sys.platform != "linux":
        return [sys.executable]
    return [sys.executable, "-I", "-S", str(ROOT / "tests" / "forked.py"), _origin()]


@functools.cache
def _origin() -> str:
    """The socket of the process that is copied, which ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="forks_")
    atexit.register(folder.cleanup)
    address = f"{folder.name}/socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", __name__, address]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # the last that is registered comes first
    return address


def _serve(address: str) -> list[str]:
    """Copy this process for each caller until standard input is closed; return, in a copy, the words of the script."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    for name in _IMPORTS:
        import_module(f"ast_lightning.commands.{name}")
    import_module("ast_lightning.commands.entry")
    gc.freeze()  # a collection in a copy would copy its pages
    print("ready", flush=True)
    while listener in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            words = _watch(connection)
            connection.close()
            return words
        connection.close()
        _collect(os.WNOHANG)
    _collect(0)
    os._exit(0)


def _collect(options: int) -> None:
    """Wait for the watchers that have ended, or for all of them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def _watch(connection: socket.socket) -> list[str]:
    """Fork the script and return its words there; here, tell the caller how it ends, and end it with the caller."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        parts = stream.read(int.from_bytes(size, "big")).split(b"\0")
    child = os.fork()
    if child == 0:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return _become([os.fsdecode(part) for part in parts])
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    for descriptor in streams:
        os.close(descriptor)
    connection.sendall(child.to_bytes(8, "big"))
    ended = os.pidfd_open(child)
    if ended not in select.select([connection, ended], [], [])[0]:  # the caller was killed
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(parts: list[str]) -> list[str]:
    folder, count, *rest = parts
    words, variables = rest[: int(count)], rest[int(count) :]
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variable.split("=", 1) for variable in variables)
    module = words[0] == "-m"
    own = os.environ.get("PYTHONPATH", "")
    sys.path[0:1] = [folder if module else str(Path(words[0]).absolute().parent), *filter(None, own.split(os.pathsep))]
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    del sys.modules["ast_lightning.commands.entry"]  # which a script imports first: it prepares streams and signals
    return words


if __name__ == "__main__":
    script = _serve(sys.argv[1])
    if script[0] == "-m":
        sys.argv = script[1:]
        runpy.run_module(script[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = script
        runpy.run_path(script[0], run_name="__main__")
