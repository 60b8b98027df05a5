"""The output folder is tried before any work; file systems without links or locks, full disks, ``~`` and umask."""

from __future__ import annotations

import errno
import fcntl
import os
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf

from ast_lightning.commands.distill import distill
from ast_lightning.commands.run import Run
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs import output as output_module
from ast_lightning.runs.output import prepare_output
from ast_lightning.storage.files import point_to, write_file, write_json
from ast_lightning.synthetic import load_distilled

from .conftest import SMALL, Command, Script, run_of


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_that_cannot_be_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "file": "Not a directory",
        "file/below": "Not a directory",
        "dangling": "link to a folder that does not exist",
        "loop": "symbolic links",
        "x" * 300: "name too long.*shorter",
        "y/" + "x" * 300: "name too long.*shorter",
    }.items():
        with pytest.raises(ConfigurationError, match=rf"(?i)^output_dir=.*{words}"):
            prepare_output(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dangling", "loop"}


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "writable"), (errno.EFBIG, "ulimit -f")]
)
def test_a_disk_that_takes_nothing_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(output_module, "_try", failing(number))
    with pytest.raises(ConfigurationError, match=f"^output_dir=.*{words}"):
        prepare_output(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_scripts_and_sweeps_look_at_it_first(tmp_path: Path, script: Script) -> None:
    (tmp_path / "file").touch()
    for flags in ((), ("-m",)):
        result = script("train_experts", tmp_path / "file", *flags)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: output_dir={tmp_path / 'file'}: ")


def test_the_systems_error_behind_that_of_torch_save_is_raised(tmp_path: Path) -> None:
    def fill(_: object) -> None:
        try:
            failing(errno.EFBIG)()
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(OSError, match=r"last\.ckpt") as caught:
        write_file(tmp_path / "last.ckpt", fill)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_is_a_note_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks" / "run.lock").touch()
    monkeypatch.setattr(fcntl, "flock", failing(number))
    prepare_output(tmp_path)
    assert "does not support file locks" in capsys.readouterr().out
    with FolderLock(tmp_path / "run") as lock:
        assert lock.take()
        assert FolderLock(tmp_path / "run").held_by() is None


def test_locks_that_work_draw_no_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_output(tmp_path / "new")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_without_links_there_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", failing(errno.EPERM))
    for content in ("1", "2"):
        write_json(tmp_path / content / "a.json", content)
        point_to(tmp_path / "last", tmp_path / content)
        assert (tmp_path / "last" / "a.json").read_text().strip() == f'"{content}"'
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "last"}
    monkeypatch.undo()
    monkeypatch.setattr(os, "symlink", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="space"):
        point_to(tmp_path / "last", tmp_path / "1")


def test_distillation_without_links_resumes_and_ends_alike(
    output: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = run_of(*SMALL, f"output_dir={output}").experts_folder()
    words = (f"experts_dir={experts}", "logger=none", "compile=false")

    def run(folder: str, steps: int) -> Run:
        command("distill", tmp_path / folder, *words, f"distill.max_steps={steps}")
        return run_of(*SMALL, *words, f"output_dir={tmp_path / folder}", f"distill.max_steps={steps}")

    straight = load_distilled(run("straight", 5).synthetic_folder())
    monkeypatch.setattr(os, "symlink", failing(errno.EPERM))
    run("parts", 3)
    made = run("parts", 5)
    assert load_distilled(made.synthetic_folder()).checksum() == straight.checksum()
    assert {path.name for path in (made.distill_folder() / "synthetic").iterdir()} == {"last"}
    before = made.synthetic_folder().stat().st_mtime_ns
    assert distill(made)["test_accuracy"] > 0  # already finished
    assert made.synthetic_folder().stat().st_mtime_ns == before


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("output_dir", "experts_dir", "buffers", "synthetic")
    run = run_of(*SMALL, *(f"{name}='~/{name}'" for name in names), "distill.warm_start='~/start'")
    assert {name: run.config[name] for name in names} == {name: str(tmp_path / name) for name in names}
    assert run.distill.warm_start == str(tmp_path / "start")
    import_module("ast_lightning.sweeps.table")  # the resolver
    sweep = OmegaConf.create({"output_dir": "~/runs", "dir": "${expanduser:${output_dir}}/sweeps"})
    assert sweep.dir == f"{tmp_path}/runs/sweeps"
    prepare_output(Path("~/runs"))
    assert not Path("~").exists()


def test_files_and_folders_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "made" / "a.json", 1)
        with FolderLock(tmp_path / "made" / "run") as lock:
            assert lock.take()
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "made").rglob("*")}
    assert modes == {0}
