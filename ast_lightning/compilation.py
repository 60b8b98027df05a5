"""torch.compile, where a compiler exists and it pays: one decision, and a wrapper that falls back.

The cost of a training step on this scale is memory traffic of unfused elementwise work rather than the convolutions;
compiling a whole derivative as one graph removes most of it. A first compilation takes a minute or so, and compiled
code is kept in a folder between runs.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_lightning.errors import ConfigurationError

PAYS_FROM = 300.0
"""Estimated seconds of a whole run from which compiling pays: it saves about a third, and costs up to 90 s."""

_NOMINAL_RATE = {"cpu": 1e11, "cuda": 1e13}  # floating-point operations a second, for the estimate only


@dataclass(frozen=True)
class Compilation:
    """Whether a run compiles, and why; the record of the choice.

    Attributes:
        enabled: whether functions are compiled.
        required: whether a function that cannot be compiled is an error rather than a reason to go on without.
        reason: for the record.
    """

    enabled: bool = False
    required: bool = False
    reason: str = "compile=false"

    def __str__(self) -> str:
        return f"{'on' if self.enabled else 'off'} ({self.reason})"


def choose_compilation(choice: str | bool, device_type: str, operations: float) -> Compilation:
    """Decide from what is configured, never from what remains, so that a resumed run decides alike.

    Args:
        choice: ``auto``, True or False.
        device_type: ``cpu``, ``cuda`` ….
        operations: floating-point operations of the whole run as configured.

    Raises:
        ConfigurationError: ``choice`` is True and nothing can compile.
    """
    if choice is False:
        return Compilation()
    missing = _missing_compiler(device_type)
    if choice is True:
        if missing:
            raise ConfigurationError("compile", True, missing, "install it, or set compile=auto")
        return Compilation(True, True, "compile=true")
    if missing:
        return Compilation(reason=f"auto: {missing}")
    pays = operations / _NOMINAL_RATE.get(device_type, 1e13) >= PAYS_FROM
    length = f"{'long enough' if pays else 'too short'} to pay for it"
    return Compilation(pays, False, f"auto: a run of about {operations:.0e} operations is {length}")


def _missing_compiler(device_type: str) -> str | None:
    """What torch.compile lacks here, or None."""
    if device_type == "cuda":
        return None if torch.utils._triton.has_triton() else "Triton, which compiles for the GPU, is not installed"
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return None if any(shutil.which(name) for name in compilers if name) else "no C++ compiler was found"


def keep_compiled_code() -> Path | None:
    """Keep compiled code where later runs find it, unless ``TORCHINDUCTOR_CACHE_DIR`` names a place already.

    torch's own default is a temporary folder, which a restart of the machine empties.

    Returns:
        The folder; None where there is no home to write to, and torch's default is used.
    """
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if named:
        return Path(named)
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ast_lightning" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or a user without a home
        return None
    if not os.access(folder, os.W_OK):
        return None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


class Compiled:
    """A function compiled at its first call, once for each shape of its arguments.

    Shapes are compiled as constants: a smaller last batch costs one more compilation and nothing after it, and
    neither size pays for being variable.

    Args:
        name: of what it computes, for messages.
        function: pure, of tensors and containers of tensors.
        compilation: the choice.
        otherwise: called in its place where compilation is off or fails; None takes ``function`` itself.

    Attributes:
        choice: the choice, or off with the reason once compilation has failed.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        compilation: Compilation,
        otherwise: Callable[..., Any] | None = None,
    ) -> None:
        self.choice = compilation
        self._name = name
        self._otherwise = otherwise or function
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False) if compilation.enabled else None

    @property
    def enabled(self) -> bool:
        """Whether the next call runs compiled code."""
        return self._compiled is not None

    def __call__(self, *arguments: Any) -> Any:
        """The function's result.

        Raises:
            ConfigurationError: compilation is required and fails.
        """
        if self._compiled is None:
            return self._otherwise(*arguments)
        try:
            return self._compiled(*arguments)
        except Exception as error:
            result = self._otherwise(*arguments)  # where this fails too, its error is the one to show
            self._give_up(error)
            return result

    def _give_up(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:2]) or type(error).__name__  # the first may only name the kind of error
        if self.choice.required:
            problem = f"{self._name} cannot be compiled ({cause})"
            raise ConfigurationError("compile", True, problem, "set compile=auto or compile=false") from error
        self._compiled = None
        self.choice = Compilation(reason=f"it failed: {cause}")
        warnings.warn(f"{self._name} runs uncompiled: {cause}", RuntimeWarning, stacklevel=3)
