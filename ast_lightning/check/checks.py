"""The checks of a machine: what each computes, and what it is compared with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ast_lightning.check.ranks import gradient_error
from ast_lightning.check.steps import Iteration, expert_gradient, relative_error
from ast_lightning.compilation import Compilation, choose_compilation
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.files import format_bytes
from ast_lightning.storage.provenance import versions

EXACT, ROUNDED, HALF = 1e-9, 5e-2, 0.3
"""Allowed relative errors in float64, in float32 (ReLUs switch if a value is near zero) and in 16 bits."""


class Skipped(Exception):
    """The check does not apply; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what is checked.
        device: the device, e.g. ``cpu`` or ``cuda:1``.
        run: returns the result as text; raises :class:`Skipped` with a reason, or another exception if the check fails.
    """

    name: str
    device: str
    run: Callable[[], str]


def run_check(check: Check) -> dict[str, Any]:
    """Run a check; an exception counts as a result.

    Returns:
        The name of the ``check``, its ``device``, the ``outcome`` (``ok``, ``failed`` or ``skipped``), the ``seconds``
        that it took, and as ``detail`` the result, the error, or the reason for skipping.
    """
    start = time.monotonic()
    try:
        outcome, detail = "ok", check.run()
    except Skipped as reason:
        outcome, detail = "skipped", str(reason)
    except Exception as error:
        outcome, detail = "failed", " ".join(f"{type(error).__name__}: {error}".split())[:400]
    seconds = time.monotonic() - start
    return {"check": check.name, "device": check.device, "outcome": outcome, "seconds": seconds, "detail": detail}


def all_checks(*, quick: bool = False) -> list[Check]:
    """The checks of this machine.

    Args:
        quick: leave out the checks that compile or start processes.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    checks = [Check("versions", "", functools.partial(_versions, gpus))]
    runs: dict[str, Callable[[torch.device], str]] = {
        "bf16": _bf16,
        "expert step": _expert,
        "distillation, float64": _distillation_float64,
        "distillation, float32": _distillation,
    }
    if not quick:
        runs["expert step, compiled"] = lambda device: _expert(device, _compilation(device))
        runs["distillation, compiled"] = lambda device: _distillation(device, _compilation(device))
    for device in ("cpu", *gpus):
        checks += [Check(name, device, functools.partial(run, torch.device(device))) for name, run in runs.items()]
    if not quick:
        checks.append(Check("DDP, gloo", "cpu", functools.partial(_ddp, "gloo", ["cpu", "cpu"])))
        checks.append(Check("DDP, nccl", "all GPUs", functools.partial(_ddp, "nccl", gpus)))
    return checks


def _versions(gpus: Sequence[str]) -> str:
    found = {**versions(), "CUDA": torch.version.cuda}
    names = ("ast_lightning", "python", "torch", "lightning", "CUDA")
    devices = [torch.cuda.get_device_properties(name) for name in gpus]
    parts = [f"{name} {found[name]}" for name in names if found.get(name)]
    parts += [f"{each.name} ({format_bytes(each.total_memory)}, {each.major}.{each.minor})" for each in devices]
    return ", ".join(parts if gpus else [*parts, "no CUDA device"])


def _bf16(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Skipped("this GPU does not support it")
    with torch.autocast(device.type, torch.bfloat16):
        gradient = expert_gradient(device)
    return _compared("an expert step under autocast", gradient, _reference("expert"), HALF)


def _expert(device: torch.device, compilation: Compilation | None = None) -> str:
    gradient = expert_gradient(device, compilation=compilation)
    return _compared("the gradient", gradient, _reference("expert"), ROUNDED)


def _distillation(device: torch.device, compilation: Compilation | None = None) -> str:
    gradient = Iteration(device, compilation=compilation).gradient()
    return _compared("the gradient", gradient, _reference("iteration"), ROUNDED)


def _distillation_float64(device: torch.device) -> str:
    adjoint, autograd = (Iteration(device, torch.float64, engine).gradient() for engine in ("adjoint", "autograd"))
    found = _compared("the adjoint, against autograd", adjoint, autograd, EXACT)
    return f"{found}; {_compared('against the CPU', adjoint, _reference('iteration'), EXACT)}"


def _ddp(backend: str, devices: list[str]) -> str:
    if len(devices) < 2:
        raise Skipped("there are fewer than two GPUs")
    return _within(gradient_error(backend, devices), EXACT, f"averaged gradients of {len(devices)} processes")


def _compilation(device: torch.device) -> Compilation:
    try:
        return choose_compilation(True, device.type, 0)
    except ConfigurationError as error:
        raise Skipped(error.problem) from error


def _compared(what: str, found: Tensor, expected: Tensor, tolerance: float) -> str:
    return _within(relative_error(found, expected), tolerance, what)


def _within(error: float, tolerance: float, what: str) -> str:
    if not error <= tolerance:  # also if it is NaN
        raise RuntimeError(f"{what} is off by {error:.1e}, and {tolerance:.0e} is allowed")
    return f"{what}: error {error:.1e}"


@functools.cache
def _reference(of: str) -> Tensor:
    """The reference gradient: on the CPU, in float64, by autograd."""
    device = torch.device("cpu")
    if of == "expert":
        return expert_gradient(device, torch.float64)
    return Iteration(device, torch.float64, "autograd").gradient()
