"""An error is one line, with the traceback in a file, whatever raised it and wherever it is printed."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ast_lightning import reporting
from ast_lightning.errors import ConfigurationError, DistillationDiverged, WorkerFailed
from ast_lightning.reporting import boundary, describe, keep_logs_in, outcome
from tests import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reporting, "_log_folders", [])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def status_of(error: BaseException | Callable[[], object], **options: bool) -> object:
    def end() -> None:
        if isinstance(error, BaseException):
            raise error
        error()

    with pytest.raises(SystemExit) as ended, boundary(**options):
        end()
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigurationError("seed", "a\x1b[31m\nb", "it is no number", "give one"), 2, "seed=a?[31m b: it is"),
        (DistillationDiverged(3, "the loss is nan", "lower distill.lr_img"), 2, "iteration 3"),
        (WorkerFailed(1, 2, 7, ""), 7, "process 1 of 2"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("by\x1b zero\nmore"), 1, "ZeroDivisionError: by? zero (" + __file__),
        (MemoryError(), 1, "MemoryError ("),
        (BrokenPipeError(32, "Broken pipe"), 1, "BrokenPipeError"),
    ],
)
def test_any_exception_is_a_line_and_a_status(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, words: str
) -> None:
    assert status_of(error) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "\x1b" not in line


def test_the_traceback_is_in_a_file_of_the_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_logs_in(tmp_path / "errors")
    for _ in range(2):  # in the same second
        status_of(ZeroDivisionError("mine"))
    (log,) = (tmp_path / "errors").iterdir()
    assert f"Traceback: {log}" in capsys.readouterr().err
    assert log.read_text().count("Traceback (most recent call last)") == 2
    (tmp_path / "file").touch()
    keep_logs_in(tmp_path / "file" / "errors")  # which cannot be made
    status_of(ZeroDivisionError("elsewhere"))
    path = Path(capsys.readouterr().err.split("Traceback: ")[1].strip())
    assert "elsewhere" in path.read_text()


def test_the_users_own_line_is_named_even_where_a_library_raises(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import json\n\ndef source():\n    return json.loads('{')\n")
    source = runpy.run_path(str(path))["source"]
    with pytest.raises(ValueError, match="Expecting") as caught:
        source()
    assert f"({path}:4, in source)" in describe(caught.value)


def test_ctrl_c_that_lightning_turned_into_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert status_of(interrupted) == 130
    assert "interrupted" in capsys.readouterr().err
    assert status_of(SystemExit(143)) == 143
    with pytest.raises(SystemExit) as ended, boundary(), boundary():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err.count("interrupted") == 1


def test_one_process_of_a_node_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert status_of(KeyError("x")) == 1
    assert capsys.readouterr().err == ""
    assert status_of(KeyError("x"), prints=True) == 1
    assert "KeyError: 'x'" in capsys.readouterr().err


def test_tracebacks_are_shown_to_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert status_of(ZeroDivisionError("mine")) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: Traceback (most recent call last)")
    assert shown.endswith("ZeroDivisionError: mine\n")
    assert status_of(ConfigurationError("a", 1, "b", "c")) == 2


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment}
    words = [sys.executable, "-c", code]
    return subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize(("asked", "lines"), [({}, 1), ({"HYDRA_FULL_ERROR": "0"}, 1), ({"HYDRA_FULL_ERROR": "1"}, 5)])
def test_a_script_shows_tracebacks_to_those_who_ask(tmp_path: Path, asked: dict[str, str], lines: int) -> None:
    """Although it tells Hydra to leave errors alone by the same variable."""
    code = (
        "import os; from ast_lightning.reporting import boundary, take_over; take_over()\n"
        "assert os.environ['HYDRA_FULL_ERROR'] == '1'\n"
        "with boundary(): {}['a key']"
    )
    result = python(code, tmp_path, TMPDIR=str(tmp_path), **asked)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) >= lines
    assert ("Traceback (most recent call last)" in result.stderr) == (lines > 1)


def test_ctrl_c_while_hydra_is_imported(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt\n")
    result = python(f"import runpy; runpy.run_path({str(ROOT / 'distill.py')!r}, run_name='__main__')", tmp_path)
    assert result.returncode == -signal.SIGINT  # which a shell shows as 130
    assert result.stderr.splitlines() == ["error: interrupted; rerun the command without fresh=true to resume"]


def test_ctrl_c_in_a_destructor_is_not_ignored(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; from ast_lightning.reporting import take_over; take_over()\n"
        "class Temporary:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "Temporary()\n"
        "time.sleep(5)\n"
        "print('went on')"
    )
    result = python(code, tmp_path)
    assert (result.returncode, result.stdout) == (-signal.SIGINT, "")
    assert result.stderr.splitlines() == ["error: interrupted; rerun the command without fresh=true to resume"]


def test_what_a_terminal_cannot_show_is_replaced_and_threads_end_in_a_line(tmp_path: Path) -> None:
    code = (
        "import threading; from ast_lightning.reporting import take_over; take_over(); print('3 ± 1')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"
    )
    result = python(code, tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout == "3 ? 1\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: a thread has ended: ZeroDivisionError")


def test_work_goes_on_where_the_reader_of_its_output_has_gone(tmp_path: Path) -> None:
    code = (
        "import pathlib; from ast_lightning.reporting import take_over; take_over()\n"
        "for _ in range(9): print('x' * 99999, flush=True)\n"
        "pathlib.Path('done').touch()"
    )
    result = python(
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.read(5); p.stdout.close(); sys.exit(p.wait())",
        tmp_path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def test_an_exception_of_interrupted_c_code_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_interrupts", [])
    with pytest.raises(KeyboardInterrupt):
        reporting._interrupt(2, None)
    assert outcome(AttributeError("module has no attribute"))[1] == 130
    assert outcome(ConfigurationError("seed", 1, "it is wrong", "correct it"))[1] == 2
