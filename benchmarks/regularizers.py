"""Effect of clipping loss and gradient penalty on experts, on digits: ``python -m benchmarks.regularizers``.

All arms use the same initial parameters, batches and augmentation, and differ only in the regularisers. The table
reports the movement of an epoch ‖θ_{t+1} − θ_t‖₂ and both penalties, mean (‖g‖₂ − 1)² with the norm of each pixel and
of each sample, as means over epochs and seeds; ± is the standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import warnings
from dataclasses import replace

from lightning import Callback, LightningModule, Trainer
from torch.func import functional_call

from ast_lightning.data import ImageDataModule
from ast_lightning.experts import ExpertModule, ExpertSettings, TrajectoryRecorder, gradient_penalty
from ast_lightning.networks import ConvNet

EPOCHS = 20
OFF = ExpertSettings(epochs=EPOCHS, batch_size=64, lr=0.01, clipping=False, gradient_penalty=0)
ARMS = {
    "off": OFF,
    "clipping": replace(OFF, clipping=True),
    "penalty, pixel norm": replace(OFF, gradient_penalty=2.0, penalty_norm="pixel"),
    "both, pixel norm": replace(OFF, clipping=True, gradient_penalty=2.0, penalty_norm="pixel"),
    "penalty, sample norm": replace(OFF, gradient_penalty=2.0, penalty_norm="sample"),
    "both, sample norm": replace(OFF, clipping=True, gradient_penalty=2.0, penalty_norm="sample"),
}
COLUMNS = ("movement", "pixel", "sample", "accuracy")


class PenaltyProbe(Callback):
    """Measures both penalties on the un-augmented training images after every epoch."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"pixel": [], "sample": []}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ExpertModule)
        network, images = pl_module.network, trainer.datamodule.train.images  # type: ignore[attr-defined]
        parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
        for norm, values in self.values.items():
            penalty = gradient_penalty(lambda p, x: functional_call(network, dict(p), (x,)), parameters, images, norm)
            values.append(float(penalty.detach()))


def measure(settings: ExpertSettings, seed: int) -> dict[str, float]:
    """Train and measure one expert of an arm."""
    data = ImageDataModule("digits", augmentation="color_crop_cutout_scale_rotate", batch_size=64, seed=seed)
    network = functools.partial(ConvNet, **data.network_arguments, width=32, depth=2)
    probe, recorder = PenaltyProbe(), TrajectoryRecorder(None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=settings.epochs,
        callbacks=[recorder, probe],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(ExpertModule(network, settings, seed=seed), datamodule=data)
    means = {norm: statistics.fmean(values) for norm, values in probe.values.items()}
    accuracy = float(trainer.callback_metrics["test/accuracy"])
    return {"movement": statistics.fmean(recorder.movement), "accuracy": accuracy, **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| arm | movement of an epoch | mean (‖g‖ − 1)², pixel | mean (‖g‖ − 1)², sample | test accuracy % |")
    print("| --- | --- | --- | --- | --- |")
    for arm, settings in ARMS.items():
        rows = [measure(settings, seed) for seed in seeds]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.3f} ± {spread:.3f}")
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
