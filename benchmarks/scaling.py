"""Cost of distillation and of experts at the sizes of CIFAR and ImageNet-1k: ``python -m benchmarks.scaling``.

This benchmark measures the operations per image (counted, and proportional to the number of images), the peak memory of
an iteration at two batch sizes, and the speed of this machine. All other numbers are computed from these.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torchvision.models import resnet18

from ast_lightning.distillation.trajectory_matching import InnerProblem, unroll
from ast_lightning.experts import ExpertObjective, ExpertSettings
from ast_lightning.networks import ConvNet, FunctionalNetwork, NetworkFactory, build_network
from ast_lightning.randomness import keyed_generator
from ast_lightning.runs.machine import keep_freed_memory
from benchmarks.arguments import Size, run
from benchmarks.convolutions import convolutions_alone, count_operations
from benchmarks.measure import Step, Variant, interleaved, peak_memory

NOMINAL_RATE = 10e12
"""Operations per second that times in the tables are computed with: a round number for scaling, not a measurement."""
EPOCHS, EXPERTS = 50, 100


@dataclass(frozen=True)
class Setting:
    """A distillation whose cost is estimated.

    Attributes:
        name: name in the tables.
        network: ``convnet`` (width 128, depth 3) or ``resnet18`` (torchvision's, with batch statistics).
        side: side of the images, in pixels; three channels.
        classes: number of classes.
        train: number of real training images.
        ipc: images per class.
        batch: number of images in an inner step.
        steps: K.
        expert_epochs: M.
    """

    name: str
    network: str
    side: int
    classes: int
    train: int
    ipc: int
    batch: int
    steps: int = 20
    expert_epochs: int = 2

    @property
    def images(self) -> int:
        """N, the number of synthetic images."""
        return self.ipc * self.classes

    @property
    def pixels_bytes(self) -> int:
        """Size of X in bytes."""
        return self.images * 3 * self.side**2 * 4

    def factory(self) -> NetworkFactory:
        """Builds the network."""
        if self.network == "resnet18":
            return functools.partial(_resnet, self.classes)
        return functools.partial(ConvNet, 3, self.classes, (self.side, self.side))


SETTINGS = (
    Setting("ConvNet, CIFAR-100, 32 px", "convnet", 32, 100, 50_000, 1, 100, expert_epochs=3),
    Setting("ConvNet, CIFAR-100, 32 px", "convnet", 32, 100, 50_000, 10, 128),
    Setting("ResNet18, ImageNet-1k, 64 px", "resnet18", 64, 1000, 1_281_167, 1, 1000),
    Setting("ResNet18, ImageNet-1k, 64 px", "resnet18", 64, 1000, 1_281_167, 10, 1000),
    Setting("ResNet18, ImageNet-1k, 224 px", "resnet18", 224, 1000, 1_281_167, 1, 256),
    Setting("ResNet18, ImageNet-1k, 224 px", "resnet18", 224, 1000, 1_281_167, 10, 256),
)


def _resnet(classes: int) -> nn.Module:
    network: nn.Module = resnet18(num_classes=classes)
    return network


@dataclass(frozen=True)
class Unrolled:
    """An outer iteration of K inner steps on ``batch`` images, uncompiled, without augmentation.

    Attributes:
        setting: defines the network and the size of the images.
        batch: number of images in an inner step.
        steps: K.
    """

    setting: Setting
    batch: int
    steps: int = 2

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        keep_freed_memory()
        network = FunctionalNetwork(self.setting.factory())
        problem, theta = InnerProblem(network), network.initial_parameters(0)
        images = _images(self.batch, self.setting.side).requires_grad_()
        labels = torch.arange(self.batch) % self.setting.classes

        def step() -> None:
            rate = torch.tensor(0.01, requires_grad=True)
            (end,) = unroll(
                problem, theta, (images, labels), _whole, rate, steps=self.steps, match_at=[self.steps]
            ).values()
            torch.autograd.grad((end - theta).square().sum(), [images, rate])

        return step


@dataclass(frozen=True)
class ExpertStep:
    """A step of an expert with gradient penalty, uncompiled.

    Attributes:
        setting: defines the network and the size of the images.
        batch: number of images in the step.
    """

    setting: Setting
    batch: int

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        keep_freed_memory()
        factory = self.setting.factory()
        network, objective = build_network(factory, 0), ExpertObjective(factory, ExpertSettings())
        images = _images(self.batch, self.setting.side)
        labels = torch.arange(self.batch) % self.setting.classes

        def step() -> None:
            network.zero_grad()
            objective(network, images, images, labels, 1.0).total.backward()

        return step


@dataclass(frozen=True)
class Pieces:
    """Measurements of a network at a size of images.

    Attributes:
        parameters: P.
        inner: operations per image in an inner step, including its backward pass.
        expert: operations per image in a step of an expert.
        image_bytes: peak memory of an iteration per image of the inner batch.
        inner_rate: operations per second of an iteration on this machine.
        expert_rate: operations per second of a step of an expert on this machine.
    """

    parameters: int
    inner: float
    expert: float
    image_bytes: float
    inner_rate: float
    expert_rate: float


def measure(setting: Setting, size: Size) -> Pieces:
    """Measure a network at a size of images; memory per image can only be measured with large batches."""
    many = 8 if setting.side > 64 else 64
    few, one, two, expert = (
        Unrolled(setting, 2),
        Unrolled(setting, many),
        Unrolled(setting, 2 * many),
        ExpertStep(setting, many),
    )
    # two lengths, because the last step of the backward pass does not need one of the products
    longer, shorter = _operations(replace(few, steps=3)), _operations(few)
    of_expert = _operations(replace(expert, batch=2))
    peaks = [peak_memory(Variant("iteration", each)) for each in (one, two)]
    timings = interleaved([Variant("iteration", one), Variant("expert", expert)], size.rounds)
    return Pieces(
        FunctionalNetwork(setting.factory()).num_parameters,
        (longer - shorter) / 2,
        of_expert / 2,
        (peaks[1] - peaks[0]) / many,
        shorter / 2 * many / timings[0].median,
        of_expert / 2 * many / timings[1].median,
    )


def _operations(step: Unrolled | ExpertStep) -> int:
    """Operations of the convolutions, which are nearly all operations."""
    return count_operations(convolutions_alone(step))


def _images(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=keyed_generator(0, "images"))


def _whole(step: int, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images, labels


Measured = Mapping[tuple[str, int], Pieces]
"""Measurements by network and side of the images."""


def pieces_table(measured: Measured) -> str:
    """The table of measurements."""
    lines = [
        "| network, side | P | a snapshot | operations of an image: inner step, expert step | memory of an image | "
        "10⁹ operations a second here: iteration, expert |",
        "|---|---|---|---|---|---|",
    ]
    for (network, side), each in measured.items():
        lines.append(
            f"| {network}, {side} px | {each.parameters:,} | {amount(4 * each.parameters)} | "
            f"{each.inner / 1e9:.3g} · 10⁹, {each.expert / 1e9:.3g} · 10⁹ | {amount(each.image_bytes)} | "
            f"{each.inner_rate / 1e9:.0f}, {each.expert_rate / 1e9:.0f} |"
        )
    return "\n".join(lines)


def iteration_table(measured: Measured) -> str:
    """The table of costs of an outer iteration with one window."""
    lines = [
        "| setting | IPC | N | batch | K | operations | at 10¹³ a second | graph of a step | K·P | "
        "X, momentum, gradient | window read | all-reduce: windows | batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        each = measured[setting.network, setting.side]
        operations, vector = setting.steps * setting.batch * each.inner, 4 * each.parameters
        sizes = (
            setting.batch * each.image_bytes,
            setting.steps * vector,
            3 * setting.pixels_bytes,
            (setting.expert_epochs + 1) * vector,
            setting.pixels_bytes,
            2 * setting.steps * vector,
        )
        lines.append(
            f"| {setting.name} | {setting.ipc} | {setting.images} | {setting.batch} | {setting.steps} | "
            f"{operations:.1e} | {operations / NOMINAL_RATE:.2g} s | {' | '.join(map(amount, sizes))} |"
        )
    return "\n".join(lines)


def experts_table(measured: Measured) -> str:
    """The table of costs of a set of experts."""
    lines = [
        f"| setting | operations of an expert, {EPOCHS} epochs | hours at 10¹³ a second | of {EXPERTS} experts | "
        f"store of {EXPERTS} | in bfloat16 | of them every second epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS[::2]:
        each = measured[setting.network, setting.side]
        operations = setting.train * EPOCHS * each.expert
        hours, store = operations / NOMINAL_RATE / 3600, EXPERTS * 4 * each.parameters * (EPOCHS + 1)
        sparse = store / 2 * (EPOCHS // 2 + 1) / (EPOCHS + 1)
        lines.append(
            f"| {setting.name} | {operations:.1e} | {hours:.2g} | {EXPERTS * hours:.0f} | {amount(store)} | "
            f"{amount(store / 2)} | {amount(sparse)} |"
        )
    return "\n".join(lines)


def amount(size: float) -> str:
    """Format a size in bytes with decimal units and three digits.

    >>> amount(40_000), amount(1.234e9)
    ('0.04 MB', '1.23 GB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e6:.3g} MB"


def report(size: Size) -> list[str]:
    """All sections; ``--small`` has no effect."""
    measured: dict[tuple[str, int], Pieces] = {}
    for setting in SETTINGS:
        if (setting.network, setting.side) not in measured:
            measured[setting.network, setting.side] = measure(setting, size)
    return [
        "### Scaling: measured, uncompiled\n\n" + pieces_table(measured),
        "### Scaling: an outer iteration\n\n" + iteration_table(measured),
        "### Scaling: experts\n\n" + experts_table(measured),
    ]


if __name__ == "__main__":
    run(report, __doc__, on_devices=False)
