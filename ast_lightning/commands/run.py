"""The objects that the three commands use, created from a checked configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from torch import nn

from ast_lightning.config.identity import (
    distill_identity,
    evaluation_identity,
    experts_identity,
    find_folder,
    short_hash,
)
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.config.schema import kind_of
from ast_lightning.data import ImageDataModule
from ast_lightning.distillation import Method
from ast_lightning.evaluation import EvaluationSettings
from ast_lightning.experts import ExpertSettings
from ast_lightning.networks import NetworkFactory
from ast_lightning.parallel.devices import devices_of
from ast_lightning.trajectories.records import STORE_FILE

Config = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything a command needs.

    Attributes:
        config: the whole configuration as plain containers, which is stored with the results.
        data: the data module, not yet set up.
        make_network: creates a network from ``channels``, ``num_classes`` and ``image_size``.
        distill: the options of the method, a subclass of :class:`~ast_lightning.config.distill.DistillSettings`.
        choices: which file of each configuration group was chosen, e.g. ``{"expert": "ast"}``.
        in_sweep: whether this is one job of a multirun.
        loggers: factories of the loggers in ``logger``, by name; each takes the folder of a run as ``save_dir``.
        callbacks: factories of the callbacks in ``callbacks``, by name.
    """

    config: Config
    data: ImageDataModule
    make_network: Callable[..., nn.Module]
    expert: ExpertSettings
    distill: Any
    evaluation: EvaluationSettings
    choices: Mapping[str, str]
    in_sweep: bool = False
    loggers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    callbacks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def method(self) -> type[Method]:
        """The class that ``distill._target_`` names."""
        found: type[Method] = get_class(self.config["distill"]["_target_"])
        return found

    @property
    def is_alone(self) -> bool:
        """Whether the run has a single process."""
        return devices_of(self.config["trainer"]) == 1

    @property
    def fast_dev_run(self) -> bool:
        return bool(self.config["trainer"].get("fast_dev_run"))

    @property
    def fresh(self) -> bool:
        """Whether to start over instead of resuming."""
        return bool(self.config["fresh"]) and not self.fast_dev_run

    def network(self) -> NetworkFactory:
        """A factory of networks for the data, which must be set up."""
        return partial(self.make_network, **self.data.network_arguments)

    def experts_folder(self) -> Path:
        """The folder of the trajectories: ``experts_dir``, or a folder named by the options that determine them."""
        return self._experts_folder

    def distill_folder(self) -> Path:
        """The folder of this distillation."""
        return self._distill_folder

    def distill_key(self) -> str:
        """The hash in the name of the folder, which its checkpoints record."""
        return self.distill_folder().name.rpartition("_")[2]

    @cached_property
    def _experts_folder(self) -> Path:
        if self.config["experts_dir"]:
            return Path(self.config["experts_dir"])
        origin = "imported" if self.config["buffers"] else f"{self._label('expert')}_seed{self.seed}"
        name = f"{self._label('data')}_{self._label('network')}_{origin}"
        return self._folder("experts", name, STORE_FILE, experts_identity)

    @cached_property
    def _distill_folder(self) -> Path:
        name = f"{self._label('data')}_{self._label('distill')}_ipc{self.distill.ipc}_seed{self.seed}"
        return self._folder("distilled", name, "config.json", partial(distill_identity, kind=type(self.distill)))

    def _folder(self, kind: str, name: str, record: str, identity_of: Callable[[Config], Config]) -> Path:
        """Find the folder of this run, by its name or by the configuration that an earlier version recorded in it."""
        identity = identity_of(self.config)
        folder = Path(self.config["output_dir"]) / kind / f"{name}_{short_hash(identity)}"
        return find_folder(folder, record, identity, identity_of)

    def synthetic_folder(self) -> Path:
        """The distilled dataset: ``synthetic``, or the last one of this distillation."""
        if self.config["synthetic"]:
            return Path(self.config["synthetic"])
        return self.distill_folder() / "synthetic" / "last"

    def _label(self, group: str) -> str:
        """The label of a group in folder names: the name of the data, the class of a custom network, or the file."""
        label, own = self.choices.get(group, group), self.config.get(group) or {}
        if group == "data":
            label = own.get("name") or label
        if group == "network" and own.get("_target_", ConvNetSettings._target_) != ConvNetSettings._target_:
            if kind_of("network", own) is None or label in ("network", "custom"):
                label = own["_target_"].rpartition(".")[2]
            else:
                label = f"{label} {own.get('name', '')}".rstrip()
        return re.sub(r"[^A-Za-z0-9.-]+", "-", label)[:40]


def evaluation_folder(run: Run) -> Path:
    """The folder of the results. Its name depends on the synthetic set, the network and the evaluation options."""
    synthetic = run.synthetic_folder().absolute()
    identity = {"synthetic": str(synthetic), **evaluation_identity(run.config)}
    name = synthetic.parent.parent.name if synthetic.name in ("last", "best") else synthetic.name
    return Path(run.config["output_dir"]) / "evaluations" / f"{name}_{short_hash(identity)}"
