"""A composed configuration, checked, as the objects that the three commands work with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from torch import nn

from ast_lightning.config.identity import distill_identity, experts_identity, find_folder, short_hash
from ast_lightning.config.network import ConvNetSettings
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
        config: the whole configuration as plain containers, for the record.
        data: not yet set up.
        make_network: takes ``channels``, ``num_classes`` and ``image_size``.
        distill: of the method: :class:`~ast_lightning.config.distill.DistillSettings`, with its own options.
        choices: which file of each configuration group was chosen, e.g. ``{"expert": "ast"}``.
        in_sweep: whether this is one job of a multirun.
        loggers: what creates the loggers of ``logger``, by name, from the folder of a run (``save_dir``).
        callbacks: what creates the callbacks of ``callbacks``, by name.
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
        """Whether this process is the whole run."""
        return devices_of(self.config["trainer"]) == 1

    @property
    def fast_dev_run(self) -> bool:
        return bool(self.config["trainer"].get("fast_dev_run"))

    @property
    def fresh(self) -> bool:
        """Whether to begin anew what is there already."""
        return bool(self.config["fresh"]) and not self.fast_dev_run

    def network(self) -> NetworkFactory:
        """The factory of networks for the data, which must have been set up."""
        return partial(self.make_network, **self.data.network_arguments)

    def experts_folder(self) -> Path:
        """Where the trajectories are: ``experts_dir``, or a name that follows from what determines them."""
        return self._experts_folder

    def distill_folder(self) -> Path:
        """Where this distillation is."""
        return self._distill_folder

    def distill_key(self) -> str:
        """The hash in the name of the folder, which the checkpoints in it know."""
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
        """The folder of the identity of this run, by its name or by what an earlier version recorded in it."""
        identity = identity_of(self.config)
        folder = Path(self.config["output_dir"]) / kind / f"{name}_{short_hash(identity)}"
        return find_folder(folder, record, identity, identity_of)

    def synthetic_folder(self) -> Path:
        """The distilled dataset: ``synthetic``, or the last one of this distillation."""
        if self.config["synthetic"]:
            return Path(self.config["synthetic"])
        return self.distill_folder() / "synthetic" / "last"

    def _label(self, group: str) -> str:
        """What names a part in the names of folders: the data's own name, the class of an own network, or the file."""
        label, own = self.choices.get(group, group), self.config.get(group) or {}
        if group == "data":
            label = own.get("name") or label
        if group == "network" and own.get("_target_", ConvNetSettings._target_) != ConvNetSettings._target_:
            label = own["_target_"].rpartition(".")[2]
        return re.sub(r"[^A-Za-z0-9.-]+", "-", label)[:40]
