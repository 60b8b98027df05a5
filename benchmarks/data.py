"""Memory of expert training by the number of images, and the time to read an epoch: ``python -m benchmarks.data``.

The images are random, of 64×64×3, in the cache of decoded images, and preprocessed batch by batch. The memory is the
anonymous memory of the process (``RssAnon``), without the mapped pages of the cache, which the system may drop.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from ast_lightning.data import ImageDataModule, Undecoded
from ast_lightning.experts import ExpertModule, ExpertSettings
from ast_lightning.networks import ConvNet
from ast_lightning.runs.machine import keep_freed_memory
from benchmarks.arguments import Size, run
from benchmarks.measure import Step, Variant, interleaved, time_table

STEPS = 8
"""Steps of expert training; memory does not grow with them."""
CLASSES, BATCH = 10, 256


def _random_image(side: int, item: int) -> tuple[np.ndarray, int]:
    """The item with this number: an image of independent values, uint8 [side, side, 3], and its label."""
    return np.random.default_rng(item).integers(0, 256, (side, side, 3), dtype=np.uint8), item % CLASSES


def random_dataset(count: int, side: int) -> Undecoded:
    """``count`` training images and 100 test images."""
    splits: dict[str, Sequence[int]] = {"train": range(count), "test": range(count, count + 100)}
    return Undecoded("random", splits, functools.partial(_random_image, side), identity=["random", count, side])


def data_module(cache: str, count: int, side: int, preload: int) -> ImageDataModule:
    """The images in a cache; ``preload`` MiB are preprocessed in memory."""
    source = functools.partial(random_dataset, count, side)
    return ImageDataModule(source, cache=cache, preload=preload, batch_size=BATCH)


@dataclass(frozen=True)
class Training:
    """A few steps of expert training.

    Attributes:
        cache: the folder of the cache.
        count: number of training images.
        side: side of the images in pixels.
    """

    cache: str
    count: int
    side: int = 64

    def anonymous_memory(self) -> int:
        """The largest anonymous memory of this process during training, in bytes."""
        keep_freed_memory()
        peak = _Peak()
        data = data_module(self.cache, self.count, self.side, preload=0)
        expert = ExpertModule(
            functools.partial(ConvNet, width=16, depth=4, **data.network_arguments), ExpertSettings(epochs=1)
        )
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_steps=STEPS, accelerator="cpu", callbacks=[peak], enable_model_summary=False, **options)
        trainer.fit(expert, datamodule=data)
        return peak.bytes


class _Peak(Callback):
    """The largest anonymous memory after a batch."""

    bytes = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.bytes = max(self.bytes, 1024 * int(fields["RssAnon"].split()[0]))


@dataclass(frozen=True)
class Epoch:
    """Reading all batches of an epoch, without training.

    Attributes:
        cache, count, side, preload: see :func:`data_module`.
    """

    cache: str
    count: int
    side: int
    preload: int

    def __call__(self) -> Step:
        """Prepare the measured step in this process."""
        data = data_module(self.cache, self.count, self.side, self.preload)
        data.setup()
        return lambda: sum(len(batch.labels) for batch in data.train_dataloader())


def memory_table(cache: str, counts: Sequence[int]) -> str:
    """A Markdown table of the anonymous memory of expert training."""
    lines = ["| images of 64 px | anonymous memory, MB |", "|---|---|"]
    for count in counts:
        lines.append(f"| {count:,} | {in_a_process(Training(cache, count)) / 1e6:.0f} |")
    return "\n".join(lines)


def in_a_process(training: Training) -> int:
    """:meth:`Training.anonymous_memory` in a new process, so that earlier work does not count."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(training.anonymous_memory).result()


def report(size: Size) -> list[str]:
    """The sections of this benchmark."""
    counts = (1000, 10_000) if size.small else (1000, 10_000, 100_000)
    with tempfile.TemporaryDirectory(prefix="ast_lightning_") as cache:
        memory = memory_table(cache, counts)
        timings = interleaved(
            [
                Variant("in memory", Epoch(cache, 10_000, 32, 1024)),
                Variant("read and preprocessed by batch", Epoch(cache, 10_000, 32, 0)),
            ],
            size.rounds,
        )
    return [
        f"## Memory of expert training, batches of {BATCH}, ConvNet of width 16",
        memory,
        "## The batches of an epoch of 10,000 images of 32 px",
        time_table(timings),
    ]


if __name__ == "__main__":
    run(report, __doc__, on_devices=False)
