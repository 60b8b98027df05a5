"""The checks: what each computes, what it is held against, and the list of those that a machine gets."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ast_lightning.check.ranks import gradient_error
from ast_lightning.check.steps import ExpertStep, Iteration, relative_error
from ast_lightning.compilation import Compilation, choose_compilation
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.devices import peak_memory
from ast_lightning.storage.files import format_bytes
from ast_lightning.storage.provenance import versions

EXACT, ROUNDED, HALF = 1e-9, 5e-2, 0.3
"""Relative errors that float64, float32 (ReLUs switch where a value is near zero) and 16 bits may have."""
OUTCOMES = ("ok", "failed", "skipped")


class Skipped(Exception):
    """A check does not apply; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """Something to find out.

    Attributes:
        name: what.
        device: where, e.g. ``cpu`` or ``cuda:1``.
        run: returns what is worth saying; raises :class:`Skipped` with a reason, or anything else where it fails.
    """

    name: str
    device: str
    run: Callable[[], str]


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        check: its name.
        device: where.
        outcome: one of ``OUTCOMES``.
        seconds: that it took.
        detail: what was found, what is wrong, or why it was skipped.
    """

    check: str
    device: str
    outcome: str
    seconds: float
    detail: str


def run_check(check: Check) -> Result:
    """Run a check; nothing that it raises but KeyboardInterrupt comes through."""
    start = time.monotonic()
    try:
        outcome, detail = "ok", check.run()
    except Skipped as reason:
        outcome, detail = "skipped", str(reason)
    except Exception as error:
        text = " ".join(str(error).split())
        outcome, detail = "failed", f"{type(error).__name__}: {text}"[:400]
    return Result(check.name, check.device, outcome, time.monotonic() - start, detail)


def all_checks(*, quick: bool = False) -> list[Check]:
    """The checks of this machine.

    Args:
        quick: leave out what compiles and what starts processes; they are listed as skipped.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    checks = [Check("versions", "", _versions), Check("GPUs", "", functools.partial(_gpus, gpus))]
    for name in ("cpu", *gpus):
        checks += _checks_of_device(torch.device(name), quick)
    ranks: list[tuple[str, list[str]]] = [("gloo", ["cpu", "cpu"]), ("nccl", gpus)]
    for backend, devices in ranks:
        run = _left_out if quick else functools.partial(_ddp, backend, devices)
        checks.append(Check(f"DDP, {backend}", "cpu" if backend == "gloo" else "all GPUs", run))
    return checks


def _checks_of_device(device: torch.device, quick: bool) -> list[Check]:
    compiled = {"expert step, compiled": _expert_compiled, "distillation, compiled": _distillation_compiled}
    runs: dict[str, Callable[[torch.device], str]] = {
        "float32": _float32,
        "tf32": _tf32,
        "bf16": _bf16,
        "expert step": _expert,
        "distillation, float64": _distillation_float64,
        "distillation, float32": _distillation_float32,
        **(dict.fromkeys(compiled, lambda device: _left_out()) if quick else compiled),
        "memory": _memory,
    }
    return [Check(name, str(device), functools.partial(run, device)) for name, run in runs.items()]


def _left_out() -> str:
    raise Skipped("--quick leaves it out")


def _versions() -> str:
    found = {**versions(), "CUDA": torch.version.cuda}
    names = ("ast_lightning", "python", "torch", "lightning", "CUDA")
    return ", ".join(f"{name} {found[name]}" for name in names if found.get(name))


def _gpus(gpus: Sequence[str]) -> str:
    if not gpus:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise Skipped(f"no CUDA device; this torch is built {built}")
    properties = [torch.cuda.get_device_properties(name) for name in gpus]
    return "; ".join(
        f"{each.name}, {format_bytes(each.total_memory)}, {each.major}.{each.minor}" for each in properties
    )


def _float32(device: torch.device) -> str:
    return _require(relative_error(_product(device), _exact_product()), 1e-5, "a matrix product in float32")


def _tf32(device: torch.device) -> str:
    if device.type != "cuda":
        raise Skipped("TensorFloat-32 is a mode of GPUs")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise Skipped("this GPU has none")
    torch.set_float32_matmul_precision("high")
    try:
        return _require(relative_error(_product(device), _exact_product()), 5e-3, "a matrix product in tf32")
    finally:
        torch.set_float32_matmul_precision("highest")


def _bf16(device: torch.device) -> str:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Skipped("this GPU has none")
    with torch.autocast(device.type, torch.bfloat16):
        gradient = ExpertStep(device)()
    return _require(relative_error(gradient, _expert_reference()), HALF, "an expert step under autocast")


def _expert(device: torch.device) -> str:
    step = ExpertStep(device)
    said = _require(relative_error(step(), _expert_reference()), ROUNDED, "the gradient")
    return f"{said}; {_milliseconds(step, device)} a step"


def _expert_compiled(device: torch.device) -> str:
    step = ExpertStep(device, compilation=_compilation(device))
    return _compiled(step, _expert_reference(), device)


def _distillation_float64(device: torch.device) -> str:
    adjoint, autograd = (Iteration(device, torch.float64, engine)() for engine in ("adjoint", "autograd"))
    said = _require(relative_error(adjoint, autograd), EXACT, "the adjoint, against autograd")
    if device.type == "cpu":
        return said
    return f"{said}; {_require(relative_error(adjoint, _iteration_reference()), EXACT, 'against the CPU')}"


def _distillation_float32(device: torch.device) -> str:
    iteration = Iteration(device)
    said = _require(relative_error(iteration(), _iteration_reference()), ROUNDED, "the gradient")
    return f"{said}; {_milliseconds(iteration, device)} an iteration"


def _distillation_compiled(device: torch.device) -> str:
    iteration = Iteration(device, compilation=_compilation(device))
    return _compiled(iteration, _iteration_reference(), device)


def _memory(device: torch.device) -> str:
    return f"peak {format_bytes(peak_memory(device))} so far"


def _ddp(backend: str, devices: list[str]) -> str:
    if not devices:
        raise Skipped("no CUDA device")
    if len(devices) == 1:
        raise Skipped("one GPU has nobody to average with")
    return _require(gradient_error(backend, devices), EXACT, f"averaged gradients of {len(devices)} processes")


def _compiled(step: Callable[[], Tensor], reference: Tensor, device: torch.device) -> str:
    start = time.monotonic()
    found = step()
    first = time.monotonic() - start
    said = _require(relative_error(found, reference), ROUNDED, "the gradient")
    return f"{said}; first {first:.0f} s, then {_milliseconds(step, device)}"


def _compilation(device: torch.device) -> Compilation:
    try:
        return choose_compilation(True, device.type, 0)
    except ConfigurationError as error:
        raise Skipped(error.problem) from error


def _require(error: float, tolerance: float, what: str) -> str:
    if not error <= tolerance:  # NaN is no less
        raise RuntimeError(f"{what} is off by {error:.1e}, and {tolerance:.0e} is allowed")
    return f"{what}: error {error:.1e}"


def _milliseconds(step: Callable[[], Tensor], device: torch.device, runs: int = 3) -> str:
    step()
    _synchronize(device)
    start = time.monotonic()
    for _ in range(runs):
        step()
    _synchronize(device)
    return f"{1000 * (time.monotonic() - start) / runs:.3g} ms"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return left @ right


def _exact_product() -> Tensor:
    return _product(torch.device("cpu"), torch.float64)


@functools.cache
def _expert_reference() -> Tensor:
    return ExpertStep(torch.device("cpu"), torch.float64)()


@functools.cache
def _iteration_reference() -> Tensor:
    return Iteration(torch.device("cpu"), torch.float64, "autograd")()
