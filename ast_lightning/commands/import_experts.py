"""Import trajectories from files instead of training experts: what train_experts.py does if ``buffers`` is set."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import incomplete, make_store, summarise, wanted_experts
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork
from ast_lightning.parallel.devices import device_type
from ast_lightning.runs.expert_locks import claim_experts
from ast_lightning.storage.files import format_bytes
from ast_lightning.terminal import say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.interchange import (
    Source,
    check_sources,
    final_parameters,
    import_buffers,
    scan_buffers,
)
from ast_lightning.trajectories.records import STORE_FILE


def import_experts(run: Run) -> dict[str, float]:
    """Import the missing experts from the files in ``buffers``.

    Returns:
        Means over the experts: ``test_accuracy`` in per cent and ``movement`` per epoch.

    Raises:
        ConfigurationError: the files do not match the network, the data or the settings.
    """
    run.data.setup("fit")
    folder, wanted = run.experts_folder(), wanted_experts(run)
    if (folder / STORE_FILE).exists() and not run.fast_dev_run:
        store = _make_store(run)
        if not run.fresh and not incomplete(store, wanted):
            check_sources(store, run.config["buffers"], wanted)
            say(f"{len(wanted)} experts are imported already: {folder}")
            return summarise(run, store, wanted)
    network = FunctionalNetwork(run.network())
    try:
        sources, epochs = scan_buffers(run.config["buffers"], network.layout, max(wanted) + 1)
    except ConfigurationError as error:
        index = run.config["expert_index"]
        if error.option != "num_experts" or index is None:
            raise
        raise ConfigurationError("expert_index", index, error.problem, "give a lower one, from 0") from error
    if epochs != run.expert.epochs:
        problem = f"the trajectories in {run.config['buffers']} have {epochs} epochs"
        raise ConfigurationError("expert.epochs", run.expert.epochs, problem, f"set expert.epochs={epochs}")
    _check_padding(run, sources[0])
    if run.fast_dev_run:
        say("fast_dev_run: the files match the network, and nothing was written")
        return {}
    store = _make_store(run)
    pending = wanted if run.fresh else incomplete(store, wanted)
    store.check_room(pending, anew=run.fresh)
    disk = format_bytes(store.bytes_to_write(pending, anew=run.fresh))
    say(f"importing from {run.config['buffers']}; {disk} of trajectories into {folder}")
    import_buffers(store, sources, [each for each in wanted if each not in pending])  # check their source
    with closing(claim_experts(store, pending, together=not run.is_alone, fresh=run.fresh)) as claimed:
        import_buffers(store, sources, claimed, partial(_evaluate, run, network))
    return summarise(run, store, wanted)


def _check_padding(run: Run, source: Source) -> None:
    """Check whether a one-channel ConvNet was trained with the first padding of the published codes.

    The shapes of the parameters can be the same with both paddings, so the accuracies are compared.

    Raises:
        ConfigurationError: the published padding gives a higher accuracy, and ``network.first_padding`` is not set.
    """
    section = {**asdict(ConvNetSettings()), **run.config["network"]}
    ours = section["_target_"] != ConvNetSettings._target_ or section["first_padding"] is not None
    if ours or run.data.channels > 1 or run.data.image_size == (28, 28):
        return
    theta = final_parameters(source)
    accuracies = []
    for padding in (1, 3):
        network = FunctionalNetwork(partial(run.make_network, **run.data.network_arguments, first_padding=padding))
        accuracies.append(_accuracy(run, network, theta) if network.num_parameters == len(theta) else 0.0)
    if accuracies[1] > accuracies[0]:
        problem = f"{source} has {100 * accuracies[0]:.1f} % test accuracy, and {100 * accuracies[1]:.1f} % with 3"
        remedy = "set network.first_padding=3, the rule of the published codes for one channel"
        raise ConfigurationError("network.first_padding", "null", problem, remedy)


def _make_store(run: Run) -> TrajectoryStore:
    """Create the store. Its description has only known values: the files do not record how they were trained."""
    data = run.data.describe()
    del data["preprocessing_fingerprint"]
    del data["augmentation"]  # the augmentation of their training is unknown
    buffers = str(Path(run.config["buffers"]).resolve())
    expert = {"buffers": buffers, "epochs": run.expert.epochs, **run.expert.snapshot_options}
    return make_store(run, expert=expert, data=data, seed=None, arithmetic=None)


@torch.no_grad()
def _accuracy(run: Run, network: FunctionalNetwork, theta: Tensor) -> float:
    """The accuracy of the parameters ``[P]`` on the test split, as a fraction."""
    right, device = 0, device_type(run.config["trainer"])
    network.to(device)
    for images, labels in run.data.test_dataloader():
        right += int((network(theta.to(device), images.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(run.data.test)


def _evaluate(run: Run, network: FunctionalNetwork, expert: int, source: Source, theta: Tensor) -> dict[str, float]:
    """Report the accuracy of the final parameters on the test split. It must not be used to select experts."""
    accuracy, chance = _accuracy(run, network, theta), 1 / run.data.num_classes
    say(f"expert {expert} is {source}: test accuracy {100 * accuracy:.1f} %")
    if accuracy < 2 * chance:
        say(
            f"warning: guessing gives {100 * chance:.1f} %: were these experts trained on "
            f"data={run.data.name} with data.preprocessing={run.data.preprocessing.kind}?"
        )
    return {"test/accuracy": accuracy}
