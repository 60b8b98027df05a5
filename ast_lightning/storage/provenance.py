"""Provenance of a result: versions of packages, the revision of the code, the command and the time.

It is stored in every artifact, so that a result can be reproduced later. It does not identify the machine.
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
"""Names of the distributions that affect numerical results."""

_remembered: list[str] = []


def provenance() -> dict[str, Any]:
    """The entries ``versions``, ``git``, ``command`` and ``time`` of an artifact's description, as plain containers."""
    return {
        "versions": versions(),
        "git": git_revision(Path(ast_lightning.__file__).parent, Path.cwd()),
        "command": command_words(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of ``PACKAGES``, by name."""
    own = {"ast_lightning": ast_lightning.__version__, "python": platform.python_version()}
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # training on a set needs only torch
            installed[name] = importlib.metadata.version(name)
    return {**own, **installed, "torch": torch.__version__}  # torch.__version__ includes the build


def remember_command(words: Sequence[str]) -> None:
    """Set the result of :func:`command_words`, so that each job of a multirun records its own command."""
    _remembered[:] = words


def command_words() -> list[str]:
    """The command line as it was entered, with the script's name without its path."""
    if _remembered:
        return list(_remembered)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return [*start, *sys.argv[1:]]


@functools.cache
def git_revision(package: Path, working: Path) -> dict[str, Any] | None:
    """The git revision of the package, or else of the working directory, at the first call in this process.

    Returns:
        ``{"of": "package" | "working directory", "commit": …, "dirty": …}``: dirty if a tracked file was changed.
        None outside of a git repository, or if git is not installed.
    """
    tracked = _git(package, "ls-files", "__init__.py")
    of, folder = ("package", package) if tracked else ("working directory", working)
    commit, _, dirty = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").partition("-")
    return {"of": of, "commit": commit, "dirty": bool(dirty)} if commit else None


def _git(folder: Path, *words: str) -> str:
    """The output of a git command; empty if it fails, git is missing, or it takes too long."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
