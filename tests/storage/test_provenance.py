"""What a result was made with: in a checkout, outside of one, and without git."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

import ast_lightning
from ast_lightning.storage import provenance


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    provenance.git_revision.cache_clear()
    yield
    provenance.git_revision.cache_clear()


@pytest.fixture(autouse=True)
def under_no_other_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    result = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit with an empty package in it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_versions_are_those_of_what_runs() -> None:
    versions = provenance.versions()
    assert versions["ast_lightning"] == ast_lightning.__version__
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torchvision", "lightning", "hydra-core", "omegaconf"} <= set(versions)


def test_the_revision_of_the_package_and_whether_it_was_changed(checkout: Path) -> None:
    package, elsewhere = checkout / "package", Path("/")
    found = provenance.git_revision(package, elsewhere)
    assert found == {"of": "package", "commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "untracked").touch()
    provenance.git_revision.cache_clear()
    assert provenance.git_revision(package, elsewhere) == found
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.git_revision(package, elsewhere) == found  # the code that this process began with
    provenance.git_revision.cache_clear()
    assert provenance.git_revision(package, elsewhere) == {**found, "dirty": True}


def test_an_installed_package_leaves_the_working_directory_to_tell(checkout: Path) -> None:
    """The environment often lies inside of a repository that does not hold it."""
    installed = checkout / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    found = provenance.git_revision(installed, checkout)
    assert found is not None
    assert found["of"] == "working directory"


def test_outside_of_a_checkout_there_is_no_revision(tmp_path: Path) -> None:
    assert provenance.git_revision(tmp_path, tmp_path) is None
    assert provenance.git_revision(tmp_path / "gone", tmp_path / "gone") is None


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision(checkout / "package", checkout) is None
    assert set(provenance.provenance()) == {"versions", "git", "command", "time"}


@pytest.mark.slow
def test_the_command_is_told_without_the_place_of_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/distill.py", "seed=1", "data.root=/data"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert provenance.command_words() == ["distill.py", "seed=1", "data.root=/data"]
    text = "from ast_lightning.storage.provenance import command_words as c; print(c())"
    result = subprocess.run([sys.executable, "-c", text, "a b"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['-c', 'a b']"


def test_the_time_is_now_and_says_its_zone() -> None:
    time = datetime.fromisoformat(provenance.provenance()["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(time.tzinfo) - time) < timedelta(seconds=5)
