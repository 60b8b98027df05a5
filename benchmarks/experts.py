"""A step of expert training with gradient penalty, ConvNet at 32×32×3: ``python -m benchmarks.experts``.

The first variant corresponds to the published code: uncompiled, with torch's own convolutions and the default memory
allocation of the C library. With ``kept memory``, the process keeps freed memory, as train_experts.py does on the CPU.
``eased`` uses convolutions with efficient second derivatives.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.func import functional_call

from ast_lightning.compilation import Compilation, keep_compiled_code
from ast_lightning.experts import ExpertObjective, ExpertSettings, expert_objective
from ast_lightning.networks import ConvNet, build_network
from ast_lightning.randomness import keyed_generator
from ast_lightning.runs.machine import keep_freed_memory
from benchmarks.arguments import Size, run
from benchmarks.convolutions import ALONE, convolutions_alone, describe_convolutions
from benchmarks.measure import Step, Variant, interleaved, peak_memory, that_differ, time_table

COMPILED = Compilation(True, True, "benchmark")
SETTINGS = ExpertSettings()


@dataclass(frozen=True)
class ExpertStep:
    """A step to measure.

    Attributes:
        batch: number of images in the batch.
        eased: use :class:`ExpertObjective` instead of the plain function.
        compiled: whether the objective is compiled.
        kept_memory: whether the process keeps freed memory.
        device: ``cpu`` or ``cuda``.
        width: width of the ConvNet.
    """

    batch: int
    eased: bool = True
    compiled: bool = False
    kept_memory: bool = True
    device: str = "cpu"
    width: int = 128

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        if self.kept_memory:
            keep_freed_memory()
        keep_compiled_code()
        return self.build()

    def build(self) -> Step:
        """A function that computes the objective, its gradient and the update."""
        factory = functools.partial(ConvNet, 3, 10, (32, 32), width=self.width)
        network = build_network(factory, 0, "network").to(self.device)
        raw = torch.randn(self.batch, 3, 32, 32, generator=keyed_generator(0, "images")).to(self.device)
        augmented, labels = raw.flip(3), (torch.arange(self.batch) % 10).to(self.device)
        optimizer = torch.optim.SGD(network.parameters(), SETTINGS.lr)
        family = ExpertObjective(factory, SETTINGS, COMPILED if self.compiled else None)

        def objective() -> torch.Tensor:
            if self.eased:
                return family(network, augmented, raw, labels, 0.5).total
            return expert_objective(
                lambda parameters, images: functional_call(network, dict(parameters), (images,)),
                dict(network.named_parameters()),
                augmented,
                raw,
                labels,
                clip_factor=0.5,
                penalty_weight=SETTINGS.gradient_penalty,
                penalty_norm=SETTINGS.penalty_norm,
            ).total

        def step() -> None:
            optimizer.zero_grad()
            objective().backward()
            optimizer.step()

        return step


def _convolutions(step: ExpertStep) -> Step:
    keep_freed_memory()
    return convolutions_alone(step.build)


def report(size: Size) -> list[str]:
    """All sections."""
    batch = 32 if size.small else 256
    make = functools.partial(ExpertStep, batch, device=size.device)
    variants = [
        Variant("plain", make(eased=False, kept_memory=False)),
        Variant("plain, kept memory", make(eased=False)),
        Variant("eased, kept memory", make()),
        Variant("eased, compiled", make(compiled=True, kept_memory=False)),
        Variant("eased, compiled, kept memory", make(compiled=True)),
        Variant(ALONE, functools.partial(_convolutions, make(compiled=True))),
    ]
    timings = interleaved(that_differ(variants, size.device), size.rounds)
    peaks = "; ".join(
        f"{each.name}: {peak_memory(each) / 1e6:.0f} MB" for each in that_differ(variants[:-1], size.device)
    )
    return [
        f"### Experts: seconds of a step with gradient penalty, batch of {batch}",
        time_table(timings),
        describe_convolutions(timings[-1], _convolutions(make(compiled=True))),
        f"Peak memory of the first step: {peaks}.",
    ]


if __name__ == "__main__":
    run(report, __doc__)
