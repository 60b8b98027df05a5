"""Use torch.compile where a compiler exists and the run is long enough, with a fallback to uncompiled code.

At this scale, a training step is limited by the memory traffic of unfused elementwise operations rather than by the
convolutions. Compiling a whole derivative as one graph removes most of this traffic. The first compilation takes about
a minute. The compiled code is cached on disk between runs.
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
"""Minimum estimated run time in seconds for compilation: it saves about a third of the time and takes up to 90 s."""

_NOMINAL_RATE = {"cpu": 1e11, "cuda": 1e13}  # floating-point operations a second, for the estimate only


@dataclass(frozen=True)
class Compilation:
    """Whether a run compiles, and why.

    Attributes:
        enabled: whether functions are compiled.
        required: whether a failed compilation raises an error; otherwise the run continues uncompiled.
        reason: why, as recorded with the results.
    """

    enabled: bool = False
    required: bool = False
    reason: str = "compile=false"

    def __str__(self) -> str:
        return f"{'on' if self.enabled else 'off'} ({self.reason})"


def choose_compilation(choice: str | bool, device_type: str, operations: float) -> Compilation:
    """Decide whether to compile.

    The decision depends on the configured work, not on the remaining work, so that a resumed run decides the same.

    Args:
        choice: ``auto``, True or False.
        device_type: ``cpu``, ``cuda`` ….
        operations: floating-point operations of the whole run as configured.

    Raises:
        ConfigurationError: ``choice`` is True and no compiler is available.
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
    """What torch.compile needs and this machine lacks, or None."""
    if device_type == "cuda":
        return None if torch.utils._triton.has_triton() else "Triton, which compiles for the GPU, is not installed"
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return None if any(shutil.which(name) for name in compilers if name) else "no C++ compiler was found"


def keep_compiled_code() -> Path | None:
    """Cache compiled code in the user's cache folder, unless ``TORCHINDUCTOR_CACHE_DIR`` is set.

    torch's default is a temporary folder, which is lost when the machine restarts.

    Returns:
        The folder; None if the home folder is not writable, in which case torch's default is used.
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
    """A function that is compiled at its first call, once for each shape of its arguments.

    Shapes are compiled as constants, which is faster than dynamic shapes. A smaller last batch costs one additional
    compilation.

    Args:
        name: description of the result, for messages.
        function: a pure function of tensors and containers of tensors.
        compilation: whether to compile.
        otherwise: called instead if compilation is off or fails; None uses ``function``.

    Attributes:
        choice: the given ``compilation``, or off with the reason once compilation has failed.
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
        """Call the function.

        Raises:
            ConfigurationError: compilation is required and fails.
        """
        if self._compiled is None:
            return self._otherwise(*arguments)
        try:
            return self._compiled(*arguments)
        except Exception as error:
            result = self._otherwise(*arguments)  # if this fails too, report its error
            self._give_up(error)
            return result

    def _give_up(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:2]) or type(error).__name__  # the first line may contain only the type of the error
        if self.choice.required:
            problem = f"{self._name} cannot be compiled ({cause})"
            raise ConfigurationError("compile", True, problem, "set compile=auto or compile=false") from error
        self._compiled = None
        self.choice = Compilation(reason=f"it failed: {cause}")
        warnings.warn(f"{self._name} runs uncompiled: {cause}", RuntimeWarning, stacklevel=3)
