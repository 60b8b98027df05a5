"""What a result was made with: versions of packages, the revision of the code, the command and the time.

Every artifact carries it, so that a number can be made again years later. Nothing here names the machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import ast_lightning

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "kornia",
    "scikit-learn",
    "numpy",
    "safetensors",
)
"""What takes part in the numbers, by the names of their distributions."""

_remembered: list[str] = []


def provenance() -> dict[str, Any]:
    """The keys ``versions``, ``git``, ``command`` and ``time``, as plain containers for an artifact's description."""
    return {
        "versions": versions(),
        "git": git_revision(Path(ast_lightning.__file__).parent, Path.cwd()),
        "command": command_words(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Version by package, of this one, of Python and of ``PACKAGES``."""
    own = {"ast_lightning": ast_lightning.__version__, "python": platform.python_version()}
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # to train on a set, torch is enough
            installed[name] = importlib.metadata.version(name)
    return {**own, **installed, "torch": torch.__version__}  # torch itself names the build as well


def remember_command(words: Sequence[str]) -> None:
    """Let :func:`command_words` give these words: a job of a multirun is made again by a command of its own."""
    _remembered[:] = words


def command_words() -> list[str]:
    """The command line as it was typed, with the script by its name alone."""
    if _remembered:
        return list(_remembered)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return [*start, *sys.argv[1:]]


@functools.cache
def git_revision(package: Path, working: Path) -> dict[str, Any] | None:
    """The revision of the package's code, or else of the working directory, when this process first asked for it.

    Returns:
        ``{"of": "package" | "working directory", "commit": …, "dirty": …}``: dirty where a tracked file was changed.
        None outside of a checkout, and where git is not installed.
    """
    tracked = _git(package, "ls-files", "__init__.py")
    of, folder = ("package", package) if tracked else ("working directory", working)
    commit, _, dirty = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").partition("-")
    return {"of": of, "commit": commit, "dirty": bool(dirty)} if commit else None


def _git(folder: Path, *words: str) -> str:
    """What git prints; nothing where it fails, is missing, or takes too long."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
