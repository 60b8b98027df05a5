"""Locks exclude other processes, name their holder, and die with it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ast_lightning.parallel.locks import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from ast_lightning.parallel.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
time.sleep(60)
"""


def test_one_wins_and_the_other_learns_who(tmp_path: Path) -> None:
    folder = tmp_path / "expert_0003"
    with FolderLock(folder) as mine:
        assert mine.take()
        other = FolderLock(folder)
        assert not other.take()
        assert other.holder().startswith(f"process {os.getpid()} on ")
        assert FolderLock(tmp_path / "expert_0004").take()
    assert other.take()
    other.release()
    assert not folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".locks"}


def test_it_vanishes_with_the_process_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = FolderLock(folder)
        assert not lock.take()
        assert lock.holder().startswith(f"process {holder.pid} on ")
        holder.send_signal(signal.SIGKILL)
        assert lock.take(seconds=20)
        lock.release()


def test_without_a_readable_note_the_holder_is_another_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    assert lock.holder() == "another process"
    assert lock.take()
    (tmp_path / ".locks" / "run.holder.json").write_text("{")
    assert lock.holder() == "another process"
    lock.release()


def test_a_note_that_cannot_be_written_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ast_lightning.parallel.locks.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        FolderLock(tmp_path / "run").take()
    monkeypatch.undo()
    again = FolderLock(tmp_path / "run")
    assert again.take()
    again.release()


def test_a_look_says_who_holds_it_and_writes_nothing(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    assert lock.held_by() is None
    assert list(tmp_path.iterdir()) == []
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock.folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        said = lock.held_by()
        assert said is not None
        assert said.startswith(f"process {holder.pid} on ")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
        assert not lock.take()  # the look has taken nothing from the holder
        holder.kill()
    assert lock.held_by() is None
    assert lock.take()
    assert lock.held_by() == lock.holder()
    lock.release()
    assert lock.held_by() is None


def test_a_look_of_another_process_does_not_pass_for_a_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, flock, refused = FolderLock(tmp_path / "run"), fcntl.flock, []

    def once(descriptor: int, how: int) -> Any:
        if not refused:
            refused.append(how)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", once)
    assert lock.take()
    assert len(refused) == 1
    lock.release()


def test_what_cannot_be_looked_at_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FolderLock(tmp_path / "run")
    assert lock.take()
    lock.release()

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("os.open", refuse)
        assert lock.held_by() == lock.holder()
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", refuse)
        assert lock.held_by() == lock.holder()
