"""What a run asks of the machine before it computes: memory that is kept, compiled code, the precision of products."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ast_lightning.commands.run import Run
from ast_lightning.compilation import Compilation, choose_compilation, keep_compiled_code
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork
from ast_lightning.parallel.devices import device_type
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.storage.provenance import versions
from ast_lightning.terminal import say

PASSES_OF_AN_EXPERT_STEP = 9
"""Forward passes' worth of operations in an expert's step with gradient penalty."""
PASSES_OF_A_PLAIN_STEP = 3
"""The same without penalty."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def prepare(run: Run) -> None:
    """Set up this process for a run.

    ``tf32`` is applied as it is configured, so that torch's own default for convolutions does not differ from that
    for matrix products; earlier compiled code of this process (another job of a sweep) is dropped.
    """
    tf32 = bool(run.config["tf32"])
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    keep_compiled_code()
    torch.compiler.reset()
    if device_type(run.config["trainer"]) == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, where the C library is glibc.

    glibc gives tensors of more than 32 MiB back to the system at once. Every step then asks for them again, page by
    page, and on the CPU this can take as long as the step's arithmetic.

    Returns:
        Whether it worked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def compile_experts(run: Run) -> Compilation:
    """The choice for expert training, by all ``num_experts``: one of them alone is compiled as in its family."""
    data, settings = run.data, run.expert
    images = len(data.train.labels) * settings.epochs * int(run.config["num_experts"])
    return _choose(
        run, images * (PASSES_OF_AN_EXPERT_STEP if settings.gradient_penalty > 0 else PASSES_OF_A_PLAIN_STEP)
    )


def compile_student(run: Run, forward_passes: int, never: str | None = None) -> Compilation:
    """The choice for distillation.

    Args:
        run: with its data set up.
        forward_passes: of an image, in the whole run.
        never: why the method is never compiled as configured; None where it can be.

    Raises:
        ConfigurationError: ``compile=true`` where it is never compiled, or nothing here can compile.
    """
    if never and run.config["compile"] is True:
        raise ConfigurationError("compile", "true", never, "leave it out")
    return _choose(run, forward_passes, never)


def describe_machine(compilation: Compilation, processes: int) -> dict[str, Any]:
    """What equality to the last bit depends on, beside the settings."""
    return {
        "compile": str(compilation),
        "threads": torch.get_num_threads(),
        "processes": processes,
        **versions(),
    }


def record_machine(path: Path, compilation: Compilation, processes: int, *, resumed: bool) -> None:
    """Write :func:`describe_machine` to ``path``; first say in what a resumed run differs from its last sitting."""
    if resumed:
        _say_what_changed(path, compilation, processes)
    write_json(path, describe_machine(compilation, processes))


def _say_what_changed(path: Path, compilation: Compilation, processes: int) -> None:
    """Say in which of these an earlier sitting of the run differs, which left its description at ``path``."""
    try:
        earlier = {str(key): value for key, value in read_json(path).items()}
    except (OSError, ValueError, AttributeError):
        return
    for name, value in describe_machine(compilation, processes).items():
        before, now = (str(each).split(" ")[0] for each in (earlier.get(name, value), value))
        if before != now:
            say(f"note: {name} was {before} and is {now} now; the last bits may differ from a run in one sitting")


def _choose(run: Run, forward_passes: int, never: str | None = None) -> Compilation:
    """The choice for so many forward passes of an image; ``never`` says why there is none to make."""
    network = FunctionalNetwork(run.network())
    network.require_pure(torch.zeros(run.data.channels, *run.data.image_size))
    image = torch.zeros(1, run.data.channels, *run.data.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(network.initial_parameters(0), image)
    operations = float(counter.get_total_flops()) * forward_passes
    compilation = choose_compilation(run.config["compile"], device_type(run.config["trainer"]), operations)
    if run.fast_dev_run and run.config["compile"] == "auto":
        compilation = Compilation(reason="auto: fast_dev_run")
    if never:
        compilation = Compilation(reason=never)
    say(f"compile: {compilation}")
    return compilation
