"""A composed configuration, checked, as the objects that the three commands work with."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from torch import nn

from ast_lightning.compilation import check_choice
from ast_lightning.data import ImageDataModule
from ast_lightning.distillation import Method, TrajectoryMatchingSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationSettings
from ast_lightning.experts import ExpertSettings
from ast_lightning.networks import NetworkFactory
from ast_lightning.parallel.devices import devices_of

Config = dict[str, Any]

_BASELINES = ("random", "representative", "whole")
_NOT_VALUES = (
    "root",
    "download",
    "eval_batch_size",
)  # where data lie and how they are read, not what they are
_NOT_IMPORTED = ("batch_size", "augmentation")  # of training, which others did
_NOT_RESULT = (
    "max_steps",  # a run with more of these is the same run, longer
    "eval_every",
    "save_every",
    "eval_networks",
    "engine",  # how the same gradients are computed
    "recompute",
    "split",
)
_CHANGE_NUMBERS = (  # arguments of the Trainer that users may add
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
_FALSIFY = {  # arguments of the Trainer after which reports would not be true, and what to set in their place
    "limit_train_batches": "set data.per_class, a number of images of each class",
    "limit_val_batches": "set evaluation.networks, distill.eval_networks or data.per_class",
    "limit_test_batches": "set evaluation.networks",
    "check_val_every_n_epoch": "set distill.eval_every; experts are tested after every epoch",
    "val_check_interval": "set distill.eval_every; experts are tested after every epoch",
    "overfit_batches": "set data.per_class, a number of images of each class",
    "accumulate_grad_batches": "set distill.windows_per_step or expert.batch_size",
}


@dataclass(frozen=True)
class Run:
    """Everything a command needs.

    Attributes:
        config: the whole configuration as plain containers, for the record.
        data: not yet set up.
        make_network: takes ``channels``, ``num_classes`` and ``image_size``.
        choices: which file of each configuration group was chosen, e.g. ``{"expert": "ast"}``.
        in_sweep: whether this is one job of a multirun.
        loggers: what creates the loggers of ``logger``, by name, from the folder of a run (``save_dir``).
        callbacks: what creates the callbacks of ``callbacks``, by name.
    """

    config: Config
    data: ImageDataModule
    make_network: Callable[..., nn.Module]
    expert: ExpertSettings
    distill: TrajectoryMatchingSettings
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
        return get_class(self.config["distill"]["_target_"])

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
        return functools.partial(self.make_network, **self.data.network_arguments)

    def expert_identity(self) -> Config:
        """What determines trajectories."""
        config = self.config
        if config["buffers"]:
            return self._imported_identity()
        return {
            "data": self._data_identity(),
            "network": config["network"],
            "expert": self.expert.describe(),
            "seed": self.seed,
            **self.arithmetic(),
        }

    def arithmetic(self) -> Config:
        """What of the machine's and the Trainer's options changes the numbers; what is as usual is left out."""
        trainer = self.config["trainer"]
        changed = {name: trainer[name] for name in _CHANGE_NUMBERS if trainer.get(name) is not None}
        tf32 = {"tf32": True} if self.config["tf32"] else {}
        return {"precision": trainer.get("precision"), **changed, **tf32}

    def _data_identity(self) -> Config:
        data = self.config["data"]
        source = {key: value for key, value in data.items() if key not in _NOT_VALUES}
        if data.get("source") in ("image_folder", "arrays"):
            source["root"] = str(Path(data["root"]).resolve())
        return source

    def _imported_identity(self) -> Config:
        """What determines imported trajectories: how they were trained is not ours to set, nor is the seed."""
        data = {key: value for key, value in self._data_identity().items() if key not in _NOT_IMPORTED}
        if data.get("per_class") is None and not data.get("validation_fraction"):
            data.pop("seed", None)
        return {
            "data": data,
            "network": self.config["network"],
            "epochs": self.expert.epochs,
            **self.expert.snapshot_options,
            "buffers": str(Path(self.config["buffers"]).resolve()),
        }

    def distill_identity(self) -> Config:
        """What determines the synthetic images, save for how many iterations they are trained."""
        settings = {key: value for key, value in asdict(self.distill).items() if key not in _NOT_RESULT}
        own = {"seed": self.seed, "data": self._data_identity(), **self.arithmetic()}
        return {
            **self.expert_identity(),
            **(own if self.config["buffers"] else {}),  # of what is done here with imported trajectories
            "distill": settings,
            "num_experts": self.config["num_experts"],
            "experts_dir": str(self.experts_folder().resolve()) if self.config["experts_dir"] else None,
        }

    def experts_folder(self) -> Path:
        """Where the trajectories are: ``experts_dir``, or a name that follows from what determines them."""
        if self.config["experts_dir"]:
            return Path(self.config["experts_dir"])
        origin = "imported" if self.config["buffers"] else f"{self._label('expert')}_seed{self.seed}"
        name = f"{self._label('data')}_{self._label('network')}_{origin}"
        return Path(self.config["output_dir"]) / "experts" / f"{name}_{short_hash(self.expert_identity())}"

    def distill_folder(self) -> Path:
        """Where this distillation is."""
        name = f"{self._label('data')}_{self._label('distill')}_ipc{self.distill.ipc}_seed{self.seed}"
        return Path(self.config["output_dir"]) / "distilled" / f"{name}_{short_hash(self.distill_identity())}"

    def synthetic_folder(self) -> Path:
        """The distilled dataset: ``synthetic``, or the last one of this distillation."""
        if self.config["synthetic"]:
            return Path(self.config["synthetic"])
        return self.distill_folder() / "synthetic" / "last"

    def _label(self, group: str) -> str:
        return re.sub(r"[^A-Za-z0-9.-]+", "-", self.choices.get(group, group))


def short_hash(identity: Config) -> str:
    """Eight hexadecimal digits that depend on the whole identity."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def settings_from(kind: type[Any], section: str, values: Mapping[str, Any]) -> Any:
    """A settings dataclass from a configuration section.

    Raises:
        ConfigurationError: a key that the dataclass does not have, or a value of another type.
    """
    known = {each.name: str(each.type) for each in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(f"{section}.{name}", value, "no such option", f"take one of {', '.join(known)}")
        if not _fits(value, known[name]):
            raise ConfigurationError(
                f"{section}.{name}", value, f"it must be of type {known[name]}", "give a value of that type"
            )
    return kind(**values)


def _fits(value: Any, annotation: str) -> bool:
    accepted = {
        "int": lambda: isinstance(value, int) and not isinstance(value, bool),
        "float": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "bool": lambda: isinstance(value, bool),
        "str": lambda: isinstance(value, str),
        "None": lambda: value is None,
        "Any": lambda: True,
    }
    return any(accepted[part.strip()]() for part in annotation.split("|"))


def check_run(config: Config) -> None:
    """Refuse values of the top level that cannot work.

    Raises:
        ConfigurationError: naming the option.
    """
    _check_whole(config, "num_experts", 1, "train one or more")
    if config["expert_index"] is not None:
        _check_whole(config, "expert_index", 0, "experts are counted from 0: give one number, or null for all")
    _check_whole(config, "seed", 0, "give a number such as 0")
    if config["expert_processes"] != "auto":
        _check_whole(config, "expert_processes", 1, "give a number, or auto")
    nodes = config["trainer"].get("num_nodes")
    if nodes is not None:
        _check_whole({"trainer.num_nodes": nodes}, "trainer.num_nodes", 1, "give how many machines take part")
    for name, remedy in _FALSIFY.items():
        value = config["trainer"].get(name)
        if value is not None:
            raise ConfigurationError(
                f"trainer.{name}", value, "what is reported would not be what was trained and tested", remedy
            )
    check_choice(config["compile"])
    for option in ("fresh", "tf32"):
        if not isinstance(config[option], bool):
            raise ConfigurationError(option, config[option], "it must be true or false", "give one of the two")
    if not isinstance(config["baselines"], list):
        raise ConfigurationError(
            "baselines",
            config["baselines"],
            "it must be a list",
            f"give one, such as baselines=[{','.join(_BASELINES)}]",
        )
    for name in config["baselines"]:
        if name not in _BASELINES:
            raise ConfigurationError("baselines", name, "there is no such baseline", f"take of {', '.join(_BASELINES)}")


def _check_whole(values: Mapping[str, Any], option: str, least: int, remedy: str) -> None:
    value = values[option]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(option, value, f"it must be a whole number of at least {least}", remedy)
