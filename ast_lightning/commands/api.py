"""Distil arrays from Python, with the same options, folders and checkpoints as the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.commands import distill as distillation
from ast_lightning.commands.app import build_run, quiet
from ast_lightning.commands.run import Run
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.composition import is_rejection, rejection
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.data import RawDataset, arrays
from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.output import prepare_output
from ast_lightning.storage.checksums import tensor_checksum
from ast_lightning.storage.files import write_file
from ast_lightning.synthetic import DistilledDataset, load_distilled

_OWN = ("data", "data.source", "data.root", "distill.ipc", "output_dir", "synthetic", "trainer.fast_dev_run")


def distill(
    images: Any,
    labels: Any,
    ipc: int = 1,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    class_names: Sequence[str] | None = None,
    options: Sequence[str] = (),
    output_dir: str | Path = "runs",
) -> DistilledDataset:
    """Train the experts that the method needs, then distil images into ``ipc`` synthetic images per class.

    Repeat an interrupted call to resume it. A finished call returns its result at once.

    Args:
        images: arrays or tensors, uint8 or floats in [0, 1], of shape ``[N, C, H, W]``, ``[N, H, W, C]`` with one or
            three channels, or ``[N, H, W]``.
        labels: ``[N]`` integers or strings.
        ipc: synthetic images per class.
        test_images, test_labels: test data in the same formats; without them, 20 % of each class are held out.
        class_names: names of the classes, in the order of the labels.
        options: overrides as on the command line, such as ``"expert.epochs=10"`` or ``"method=dm"``. Experts are
            trained in this process; ``"expert_processes=2"`` starts two, and needs ``if __name__ == "__main__":``
            around the call in a script.
        output_dir: all files are written below this folder, including a copy of the given images.

    Returns:
        The distilled dataset after the last iteration, as ``distill.py`` writes it.

    Raises:
        ConfigurationError: an option or an array is not valid.
        DistillationDiverged: the loss or the synthetic set is no longer finite.

    Example::

        distilled = ast_lightning.distill(images, labels, ipc=1, options=["expert.epochs=10", "distill.max_steps=300"])
    """
    if isinstance(options, str | Mapping):
        words = [options] if isinstance(options, str) else [f"{name}={value}" for name, value in options.items()]
        raise ConfigurationError("options", options, "it must be a list of overrides", f"write options={words}")
    folder = Path(output_dir).expanduser()
    prepare_output(folder)
    path = _save(arrays(images, labels, test_images, test_labels, class_names), folder)
    with quiet():
        # a process of its own would run a script that has no guard again
        run = _run(["data=arrays", f"distill.ipc={ipc}", "expert_processes=1", *options], path, folder)
        if run.distill.uses_experts(run.config["distill"]):
            train_experts(run)
        distillation.distill(run)
    return load_distilled(run.synthetic_folder())


def _save(data: RawDataset, folder: Path) -> Path:
    """Write the images to a file named by their checksum, unless it exists, and return its path."""
    tensors = {"train_images": data.train.images[:], "train_labels": data.train.labels}
    tensors |= {"test_images": data.test.images[:], "test_labels": data.test.labels}
    checksum = tensor_checksum(tensors, {"class_names": json.dumps(data.class_names)})
    path = folder / "arrays" / f"{checksum[:16]}.npz"
    if not path.exists():
        contents = {**{name: each.numpy() for name, each in tensors.items()}, "class_names": np.array(data.class_names)}
        write_file(path, lambda stream: np.savez(stream, **contents))  # type: ignore[arg-type]
    return path


def _run(overrides: list[str], path: Path, output_dir: Path) -> Run:
    for word in overrides[2:]:
        name, _, value = word.lstrip("+").partition("=")
        if name in _OWN:
            raise ConfigurationError(name, value, "distill() sets this itself", "leave it out of options")
    outer = GlobalHydra.instance().hydra  # set if the calling script is itself a Hydra application
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
            config = compose("config", overrides=overrides, return_hydra_config=True)
    except Exception as error:
        if is_rejection(error):
            raise rejection(error, overrides) from error
        raise
    finally:
        GlobalHydra.instance().hydra = outer
    # after composing, because a path in an override may need quotes
    config.data.root, config.output_dir = str(path), str(output_dir)
    return build_run(config, choices=config.hydra.runtime.choices)
