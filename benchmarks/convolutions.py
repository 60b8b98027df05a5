"""A lower bound for the time of a computation: the time of its convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Step, Timing

ALONE = "the convolutions of the last one alone"

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Recorder(TorchDispatchMode):
    """Records every convolution and every derivative of a convolution that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVOLUTIONS:
            detached = [each.detach() if isinstance(each, torch.Tensor) else each for each in args]
            self.calls.append((func, tuple(detached)))
        return func(*args, **(kwargs or {}))


def convolutions_alone(build: Callable[[], Step], repeat: int = 1) -> Step:
    """A function that runs only the convolutions of a step, ``repeat`` times, with the tensors of the step.

    Args:
        build: builds the step. Compiled functions run uncompiled here, so that their convolutions are recorded.
        repeat: number of repetitions.
    """
    with torch.compiler.set_stance("force_eager"):
        run = build()
        run()  # exclude work that is done only once
        with _Recorder() as recorder:
            run()

    def step() -> None:
        with torch.no_grad():
            for _ in range(repeat):
                for function, arguments in recorder.calls:
                    function(*arguments)

    return step


def count_operations(step: Step) -> int:
    """Floating-point operations of the convolutions and matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def describe_convolutions(timing: Timing, step: Step) -> str:
    """A sentence on the operations of a :func:`convolutions_alone` step and their measured rate."""
    operations = count_operations(step)
    rate = operations / timing.median
    return f"{ALONE}: {operations / 1e9:.0f} · 10⁹ floating-point operations, {rate / 1e9:.0f} · 10⁹ a second."
