"""The program of a script that is forked, see ``tests/forks.py``: ``python -I -S tests/forked.py SOCKET SCRIPT …``."""

from __future__ import annotations

import os
import signal
import socket
import sys


def receive() -> int:
    number = connection.recv(8)
    if len(number) < 8:
        sys.exit("the process that is copied has ended")
    return int.from_bytes(number, "big", signed=True)


connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
words = sys.argv[2:]
text = "\0".join([os.getcwd(), str(len(words)), *words, *(f"{name}={value}" for name, value in os.environ.items())])
content = os.fsencode(text)
socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(content)
child = receive()
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, lambda number, frame: os.kill(child, number))
for descriptor in (0, 1, 2):  # those of the script alone: a reader sees their end when it has ended
    os.close(descriptor)
status = receive()
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
