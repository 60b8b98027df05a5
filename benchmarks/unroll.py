"""An iteration of distillation, ConvNet of width 128 and depth 3 at 32×32×3: ``python -m benchmarks.unroll``.

One iteration trains the student for K steps on augmented synthetic images, compares its final parameters with a target,
and differentiates the distance with respect to the images and α. The first variant corresponds to the published codes:
the graph of all K steps, uncompiled, with the default memory allocation of the C library. With ``kept memory``, the
process keeps freed memory, as distill.py does on the CPU. Two more tables compare the truncated gradient of TESLA with
the exact one, and the nearest step of ATT with the last one of MTT.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ast_lightning.compilation import Compilation, keep_compiled_code
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.trajectory_matching import InnerProblem, unroll
from ast_lightning.networks import ConvNet, FunctionalNetwork
from ast_lightning.randomness import keyed_generator
from ast_lightning.runs.machine import keep_freed_memory
from benchmarks.arguments import Size, run
from benchmarks.convolutions import ALONE, convolutions_alone, describe_convolutions
from benchmarks.measure import Step, Variant, first_run, interleaved, peak_memory, that_differ, time_table
from benchmarks.nearest import nearest

AUGMENTATION = "color_crop_cutout_flip_scale_rotate"
WIDE = 768
"""The width of a ConvNet of 10.7 million parameters."""
COMPILED = Compilation(True, True, "benchmark")


@dataclass(frozen=True)
class Iteration:
    """An iteration to measure.

    Attributes:
        images: number of synthetic images, all of which are used in each inner step.
        steps: K.
        engine: engine of the unroll.
        compiled: whether the student's derivatives are compiled.
        kept_memory: whether the process keeps freed memory.
        recompute: option of the adjoint engine.
        device: ``cpu`` or ``cuda``.
        dtype: float32 or float64.
        width: width of the ConvNet.
    """

    images: int
    steps: int
    engine: str = "adjoint"
    compiled: bool = False
    kept_memory: bool = True
    recompute: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    width: int = 128

    def __call__(self) -> Step:
        """Prepare the measured iteration in this process."""
        if self.kept_memory:
            keep_freed_memory()
        keep_compiled_code()
        differentiate = self.build()
        return lambda: differentiate()

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def build(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """A function that computes the gradients with respect to images and α."""
        network = FunctionalNetwork(functools.partial(ConvNet, 3, 10, (32, 32), width=self.width)).to(self.device)
        start, target = (self._placed(network.initial_parameters(0, name)) for name in ("start", "target"))
        images = self._placed(torch.randn(self.images, 3, 32, 32, generator=keyed_generator(0, "images")))
        labels = (torch.arange(self.images) % 10).to(self.device)
        learning_rate = self._placed(torch.tensor(0.01))
        problem = InnerProblem(network, COMPILED if self.compiled else None)
        augmentation = SiameseAugmentation(AUGMENTATION)

        def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            draw = augmentation.draw(len(images), (32, 32), keyed_generator(0, "augmentation", step))
            return augmentation.apply(images, draw), labels

        def differentiate() -> tuple[Tensor, Tensor]:
            x, alpha = images.detach().requires_grad_(), learning_rate.detach().requires_grad_()
            (end,) = unroll(
                problem,
                start,
                (x, labels),
                batch,
                alpha,
                steps=self.steps,
                match_at=[self.steps],
                engine=self.engine,
                recompute=self.recompute,
            ).values()
            loss = (end - target).square().sum() / (start - target).square().sum()
            by_images, by_rate = torch.autograd.grad(loss, (x, alpha))
            return by_images, by_rate

        return differentiate


def times(size: Size, images: int, steps: int) -> str:
    """Interleaved timings of the engines."""
    make = functools.partial(Iteration, images, steps, device=size.device)
    variants = [
        Variant("autograd", make("autograd", kept_memory=False)),
        Variant("adjoint", make(kept_memory=False)),
        Variant("autograd, kept memory", make("autograd")),
        Variant("adjoint, kept memory", make()),
        Variant("adjoint, compiled", make(compiled=True, kept_memory=False)),
        Variant("adjoint, compiled, kept memory", make(compiled=True)),
        Variant(ALONE, functools.partial(_convolutions, make(compiled=True))),
    ]
    timings = interleaved(that_differ(variants, size.device), size.rounds)
    return "\n\n".join(
        [
            f"### Unroll: seconds of an iteration, {images} images, K = {steps}",
            time_table(timings),
            describe_convolutions(timings[-1], _convolutions(make(compiled=True))),
        ]
    )


def _convolutions(iteration: Iteration) -> Step:
    keep_freed_memory()
    return convolutions_alone(replace(iteration, steps=1).build, repeat=iteration.steps)


def memory(size: Size, images: int, steps: tuple[int, int, int]) -> str:
    """Peak memory for three values of K; autograd is measured only for the first two."""
    short, middle, long = steps
    make = functools.partial(Iteration, images, device=size.device)
    wide, names = Iteration(1, long, device=size.device, width=WIDE), ("adjoint", "adjoint, recompute")
    lines = [
        f"### Unroll: peak memory of an iteration in MB, {images} images",
        "",
        "| variant | K | above the process's own | K·P floats |",
        "|---|---|---|---|",
    ]
    rows = [
        ("autograd", make(steps=short, engine="autograd")),
        ("autograd", make(steps=middle, engine="autograd")),
        *(("adjoint", make(steps=count)) for count in steps),
        ("adjoint, recompute", make(steps=long, recompute=True)),
        ("adjoint, compiled", make(steps=short, compiled=True)),
        ("adjoint, compiled", make(steps=long, compiled=True)),
        *((f"{name}, width {WIDE}, one image", replace(wide, recompute=name != "adjoint")) for name in names),
    ]
    for name, iteration in rows:
        peak = peak_memory(Variant(name, iteration))
        stored = f"{iteration.steps * 4 * _parameters(iteration.width) / 1e6:.0f}"
        lines.append(f"| {name} | {iteration.steps} | {peak / 1e6:.0f} | {stored} |")
    return "\n".join(lines)


def _parameters(width: int) -> int:
    return FunctionalNetwork(functools.partial(ConvNet, 3, 10, (32, 32), width=width)).num_parameters


def first_iteration(size: Size, images: int, steps: int) -> str:
    """Seconds of the first iteration in a new process: compiling, with cached compiled code, and uncompiled."""
    lines = [
        f"### Unroll: seconds of the first iteration of a process, {images} images, K = {steps}",
        "",
        "| compiled code | seconds |",
        "|---|---|",
    ]
    make = functools.partial(Iteration, images, steps, device=size.device)
    with tempfile.TemporaryDirectory() as cache:
        compiled = functools.partial(_with_cache, cache, make(compiled=True))
        for name, prepare in (("made", compiled), ("found in the cache", compiled), ("none", make())):
            lines.append(f"| {name} | {first_run(Variant(name, prepare)):.1f} |")
    return "\n".join(lines)


def _with_cache(folder: str, iteration: Iteration) -> Step:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    return iteration()


def accuracy(size: Size, images: int, steps: int) -> str:
    """Relative errors of float32 image gradients against float64."""
    make = functools.partial(Iteration, images, steps, device=size.device)
    reference = make("autograd", dtype=torch.float64).build()()[0]
    lines = [
        f"### Unroll: relative error of the image gradient in float32, {images} images, K = {steps}",
        "",
        "| variant | error against float64 |",
        "|---|---|",
    ]
    variants = {"autograd": make("autograd"), "adjoint": make(), "adjoint, compiled": make(compiled=True)}
    for name, iteration in variants.items():
        error = (iteration.build()()[0].double() - reference).norm() / reference.norm()
        lines.append(f"| {name} | {error:.1e} |")
    return "\n".join(lines)


def truncated(size: Size, images: int, steps: Sequence[int]) -> str:
    """Seconds, memory and image gradients of the truncated engine and of the exact adjoint, without momentum."""
    lines = [
        f"### Unroll: truncated gradient (TESLA) against the exact one, {images} images",
        "",
        "| K | seconds, exact | truncated | ratio | MB, exact | truncated | cosine | ratio of norms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for count in steps:
        engines = [Iteration(images, count, engine, device=size.device) for engine in ("adjoint", "truncated")]
        variants = [Variant(each.engine, each) for each in engines]
        exact, approximate = (each.median for each in interleaved(variants, size.rounds))
        most, least = (peak_memory(each) / 1e6 for each in variants)
        one, other = (each.build()()[0].flatten() for each in engines)
        cosine, norms = float(one @ other / (one.norm() * other.norm())), float(other.norm() / one.norm())
        seconds = f"{exact:.3g} | {approximate:.3g} | {approximate / exact:.2f}"
        lines.append(f"| {count} | {seconds} | {most:.0f} | {least:.0f} | {cosine:.3f} | {norms:.2f} |")
    return "\n".join(lines)


def report(size: Size) -> list[str]:
    """All sections."""
    if size.small:
        return [accuracy(size, 10, 5), times(size, 10, 5), truncated(size, 10, (1, 5)), nearest((10,), windows=5)]
    return [
        accuracy(size, 10, 5),
        times(size, 10, 10),
        times(size, 100, 5),
        memory(size, 100, (10, 20, 80)),
        first_iteration(size, 100, 5),
        truncated(size, 10, (1, 5, 10, 20, 40)),
        nearest((10, 20, 40), windows=20),
    ]


if __name__ == "__main__":
    run(report, __doc__)
