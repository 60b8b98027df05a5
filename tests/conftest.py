"""The tests' surroundings: the same on every machine, whatever shell, queue or hook they are started from."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
from hypothesis import settings

_OF_OTHERS = ("SLURM_", "SUBMITIT_", "TORCHELASTIC_", "MASTER_", "GROUP_", "GIT_", "AST_LIGHTNING_")
_OF_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE")

for _name in list(os.environ):  # before torch or Lightning look
    if _name.startswith(_OF_OTHERS) or _name in _OF_RANKS:
        del os.environ[_name]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture
def window_readers() -> Callable[[], list[str]]:
    """The threads that read windows, without those of earlier tests: a caught error keeps its iterator alive."""
    before = set(threading.enumerate())
    return lambda: [each.name for each in set(threading.enumerate()) - before if each.name.startswith("next window")]
