"""Training evaluation networks one by one and several at once: ``python -m benchmarks.evaluation``.

One run trains new ConvNets on a synthetic set, with augmentation, and tests them. ``evaluation.at_once`` stacks
networks into one computation. Whether this is faster depends on how well one network utilises the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ast_lightning.data import LabelledImages, SiameseAugmentation
from ast_lightning.evaluation import EvaluationSettings, NetworkEvaluator
from ast_lightning.networks import ConvNet
from ast_lightning.randomness import keyed_generator
from ast_lightning.runs.machine import keep_freed_memory
from ast_lightning.synthetic import TrainingSet
from benchmarks.arguments import Size, run
from benchmarks.measure import Step, Variant, interleaved, time_table

AUGMENTATION = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation to measure.

    Attributes:
        images: number of synthetic images.
        side: side of the images, in pixels.
        channels: channels of the images.
        width: width of the ConvNet.
        depth: depth of the ConvNet.
        at_once: number of networks that are trained together.
        networks: total number of networks.
        epochs: epochs of each network.
        device: ``cpu`` or ``cuda``.
    """

    images: int
    side: int
    channels: int
    width: int
    depth: int
    at_once: int = 1
    networks: int = 4
    epochs: int = 20
    device: str = "cpu"

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        keep_freed_memory()
        size = (self.side, self.side)
        network = functools.partial(ConvNet, self.channels, 10, size, width=self.width, depth=self.depth)
        settings = EvaluationSettings(networks=self.networks, epochs=self.epochs, at_once=self.at_once)
        images = torch.randn(self.images + 500, self.channels, *size, generator=keyed_generator(0, "images"))
        labels = torch.arange(len(images)) % 10
        real = LabelledImages(images[self.images :], labels[self.images :])
        evaluator = NetworkEvaluator(network, settings, {"test": real}, augmentation=SiameseAugmentation(AUGMENTATION))
        synthetic = TrainingSet(images[: self.images], labels[: self.images], 0.01)
        device = torch.device(self.device)

        def evaluate() -> None:
            for group in evaluator.groups():
                evaluator.run(group, lambda index: synthetic, device)

        return evaluate


def report(size: Size) -> list[str]:
    """All sections."""
    sets = {
        "digits, width 32, depth 2, 10 images": Evaluation(10, 8, 1, 32, 2, device=size.device),
        "32×32×3, width 128, depth 3, 10 images": Evaluation(10, 32, 3, 128, 3, device=size.device),
    }
    if not size.small:
        sets["32×32×3, width 128, depth 3, 100 images"] = Evaluation(100, 32, 3, 128, 3, epochs=5, device=size.device)
    sections = []
    for title, one in sets.items():
        several = functools.partial(Evaluation, one.images, one.side, one.channels, one.width, one.depth)
        variants = [
            Variant(f"{count} at once", several(count, one.networks, one.epochs, one.device)) for count in (1, 2, 4)
        ]
        table = time_table(interleaved(variants, size.rounds))
        sections.append(f"### Evaluation: seconds of {one.networks} networks, {one.epochs} epochs, {title}\n\n{table}")
    return sections


if __name__ == "__main__":
    run(report, __doc__)
