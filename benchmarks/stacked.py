"""Training four experts one after the other and several at once: ``python -m benchmarks.stacked``.

"At once" means torch.func.vmap of the objective's gradient over stacked parameters, each expert with its own batch.
train_experts.py does not do this; docs/scaling.md explains why, with the numbers that this benchmark prints.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from ast_lightning.compilation import Compilation, Compiled, keep_compiled_code
from ast_lightning.experts import ExpertObjective
from ast_lightning.networks import ConvNet, NetworkFactory, build_network
from ast_lightning.randomness import keyed_generator
from ast_lightning.runs.machine import keep_freed_memory
from benchmarks.arguments import Size, run
from benchmarks.experts import COMPILED, SETTINGS
from benchmarks.measure import Step, Variant, interleaved, time_table

EXPERTS = 4


@dataclass(frozen=True)
class FourSteps:
    """A step of each of four experts.

    Attributes:
        at_once: number of experts in one computation; 0 trains them one after the other, as train_experts.py does.
        compiled: whether the objective is compiled.
        batch: number of images in a step of one expert.
        side: side of the images, in pixels.
        channels: channels of the images.
        width: width of the ConvNet.
        depth: depth of the ConvNet.
    """

    at_once: int
    compiled: bool
    batch: int
    side: int
    channels: int
    width: int
    depth: int

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        keep_freed_memory()
        keep_compiled_code()
        return self.build()

    def build(self) -> Step:
        """A function that takes the steps and returns the resulting parameters of all experts, ``[experts, P]``."""
        size = (self.side, self.side)
        factory = functools.partial(ConvNet, self.channels, 10, size, width=self.width, depth=self.depth)
        images = torch.randn(self.batch, self.channels, *size, generator=keyed_generator(0, "images"))
        labels = torch.arange(self.batch) % 10
        choice = COMPILED if self.compiled else Compilation()
        return (_stacked if self.at_once else _in_turn)(factory, images, labels, choice, self.at_once)


def _in_turn(factory: NetworkFactory, images: Tensor, labels: Tensor, choice: Compilation, at_once: int) -> Step:
    networks = [build_network(factory, 0, "network", index) for index in range(EXPERTS)]
    optimizers = [torch.optim.SGD(network.parameters(), SETTINGS.lr) for network in networks]
    objective = ExpertObjective(factory, SETTINGS, choice)

    def step() -> Tensor:
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            objective(network, images.flip(3), images, labels, 0.5).total.backward()
            optimizer.step()
        return torch.stack([torch.cat([each.detach().flatten() for each in net.parameters()]) for net in networks])

    return step


def _stacked(factory: NetworkFactory, images: Tensor, labels: Tensor, choice: Compilation, at_once: int) -> Step:
    skeleton = build_network(factory, 0, "skeleton")
    networks = [dict(build_network(factory, 0, "network", index).named_parameters()) for index in range(EXPERTS)]
    groups = [
        {name: torch.stack([each[name].detach() for each in networks[first : first + at_once]]) for name in networks[0]}
        for first in range(0, EXPERTS, at_once)
    ]
    batch = [each.expand(at_once, *each.shape).contiguous() for each in (images.flip(3), images, labels)]

    def loss(parameters: dict[str, Tensor], augmented: Tensor, raw: Tensor, labels: Tensor) -> Tensor:
        def apply(at: Tensor) -> Tensor:
            logits: Tensor = functional_call(skeleton, parameters, (at,))
            return logits

        slope = grad(lambda at: apply(at).sum())(raw)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        return 0.5 * F.cross_entropy(apply(augmented), labels) + SETTINGS.gradient_penalty * penalty

    gradients = Compiled("stacked gradients", vmap(grad(loss)), choice)

    def step() -> Tensor:
        for group in groups:
            found = gradients(group, *batch)
            for name, value in group.items():
                value.sub_(found[name], alpha=SETTINGS.lr)
        return torch.cat([torch.cat([value.flatten(1) for value in group.values()], 1) for group in groups])

    return step


def report(size: Size) -> list[str]:
    """All sections; ``--small`` measures only the small network."""
    small, large = "8×8×1, width 32, depth 2", "32×32×3, width 128, depth 3"
    sets = [(small, False, (64, 8, 1, 32, 2)), (small, True, (64, 8, 1, 32, 2))]
    if not size.small:
        sets += [(large, False, (32, 32, 3, 128, 3)), (large, True, (256, 32, 3, 128, 3))]
    sections = []
    for title, compiled, shape in sets:
        variants = [
            Variant(f"{count} at once" if count else "one after the other", FourSteps(count, compiled, *shape))
            for count in (0, 2, 4)
        ]
        how = f"{title}, batch {shape[0]}, {'compiled' if compiled else 'uncompiled'}"
        table = time_table(interleaved(variants, size.rounds))
        sections.append(f"### Experts: seconds of a step of each of four, {how}\n\n{table}")
    return sections


if __name__ == "__main__":
    run(report, __doc__, on_devices=False)
