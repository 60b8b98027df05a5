"""The identity of a run: the settings that determine its result, as plain containers. Folders are named by its hash.

Options at their neutral value are left out (see :func:`~ast_lightning.config.settings.option`). Therefore a new option
or a changed default does not rename the folder of a run whose computation is unchanged.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ast_lightning.config.data import READ_FROM_ROOT
from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.config.schema import kind_of
from ast_lightning.config.settings import comparable, without_neutral
from ast_lightning.config.trainer import CHANGE_RESULTS, SHORT_PRECISIONS, TrainerSettings
from ast_lightning.config.trajectory_matching import EXACT_ENGINES, TrajectoryMatchingSettings

Config = dict[str, Any]

_OF_TRAINING = ("batch_size", "augmentation")  # data options that do not affect imported trajectories
_TRAJECTORY_MATCHING = TrajectoryMatchingSettings._target_


def short_hash(identity: Mapping[str, Any]) -> str:
    """The first eight hexadecimal digits of the SHA-256 of an identity."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def experts_identity(config: Config) -> Config:
    """The settings that determine trajectories.

    Args:
        config: a composed configuration as plain containers, or a recorded one of an earlier version; options that it
            lacks count as neutral.
    """
    if config.get("buffers"):
        return _imported_identity(config)
    return {
        "data": data_identity(config),
        "network": _section("network", config),
        "expert": _section("expert", config),
        "seed": config["seed"],
        **_arithmetic(config),
    }


def depends_on_length(distill: Config) -> bool:
    """Whether iterations depend on ``distill.max_steps``: a cosine schedule does, and a part of the user's own may."""
    return distill.get("schedule") == "cosine" or any(isinstance(value, Mapping) for value in distill.values())


def distill_identity(config: Config, kind: type[Any] | None = None) -> Config:
    """The settings that determine the synthetic images.

    The number of iterations is included only if the images depend on it.

    Args:
        config: see :func:`experts_identity`.
        kind: the settings dataclass of a third-party method.
    """
    values = dict(config["distill"])
    target = values.pop("_target_", _TRAJECTORY_MATCHING)
    # null in configurations of commit 571d69b: one window per device with split=windows, otherwise one
    if target == _TRAJECTORY_MATCHING and values.get("windows_per_step") is None:
        trainer = config["trainer"]
        values["windows_per_step"] = (
            trainer["devices"] * trainer["num_nodes"] if values.get("split") == "windows" else 1
        )
    if values.pop("learn_lr", True) is False:  # until version 0.1
        values["alpha"] = "fixed"
    kind = kind_of("distill", {"_target_": target}) or kind
    exact = values.get("engine") in EXACT_ENGINES
    if exact and isinstance(kind, type) and issubclass(kind, TrajectoryMatchingSettings):
        del values["engine"]  # these engines compute the same
    if values.get("warm_start"):
        values["warm_start"] = _absolute(values["warm_start"])
    own = {"seed": config["seed"], "data": data_identity(config), **_arithmetic(config)}
    identity = {"distill": without_neutral(kind, values)}
    if depends_on_length(values):
        identity["distill"]["max_steps"] = comparable(values.get("max_steps"))
    if target != _TRAJECTORY_MATCHING:
        identity["method"] = target
    if isinstance(kind, type) and issubclass(kind, DistillSettings) and not kind.uses_experts(values):
        data = {name: value for name, value in own["data"].items() if name != "batch_size"}  # used by expert training
        return {**own, "data": data, "network": _section("network", config), **identity}
    folder = config.get("experts_dir")
    return {
        **experts_identity(config),
        **(own if config.get("buffers") else {}),  # they affect the distillation from imported trajectories
        **identity,
        "num_experts": config["num_experts"],
        **({"experts_dir": _absolute(folder)} if folder else {}),
    }


def data_identity(config: Config) -> Config:
    """The settings that determine the images.

    Args:
        config: see :func:`experts_identity`.
    """
    root = _root(config["data"])
    return {**_section("data", config), **({} if root is None else {"root": _absolute(root)})}


def evaluation_identity(config: Config) -> Config:
    """The settings that determine the accuracies that evaluate.py measures, besides the images.

    Args:
        config: see :func:`experts_identity`.
    """
    return {
        "data": data_identity(config),
        "network": _section("network", config),
        "evaluation": _section("evaluation", config),
        "seed": config["seed"],
        **_arithmetic(config),
    }


def arithmetic(config: Config) -> Config:
    """The options of the machine and the Trainer that change results, as recorded in stores."""
    trainer = config["trainer"]
    changed = {name: trainer[name] for name in CHANGE_RESULTS if trainer.get(name) is not None}
    tf32 = {"tf32": True} if config.get("tf32") else {}
    return {"precision": trainer.get("precision"), **changed, **tf32}


def find_folder(folder: Path, record: str, identity: Config, identity_of: Callable[[Config], Config]) -> Path:
    """Return ``folder`` or, if it does not exist, a folder beside it with the same identity.

    Such a folder has the same hash after another name, or was written by an earlier version.

    Args:
        folder: its name ends in the hash of ``identity``.
        record: name of the JSON file in it that contains the configuration, itself or under the key ``config``.
        identity: the identity of this run.
        identity_of: computes the identity of a recorded configuration.
    """
    if folder.exists():
        return folder
    named = sorted(folder.parent.glob(glob.escape(folder.name[:-8]) + "?" * 8))
    for path in (*sorted(folder.parent.glob(f"*_{folder.name[-8:]}")), *named):
        try:
            content = json.loads((path / record).read_text(encoding="utf-8"))
            recorded = content.get("config", content)
            if _located(recorded) and identity_of(recorded) == identity:
                return path
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of another kind, or damaged: skip it
    return folder


def _located(config: Config) -> bool:
    """Whether the paths of a recorded configuration are absolute, i.e. valid in every working directory."""
    root = _root(config["data"])
    return all(Path(path).is_absolute() for path in (root, config.get("buffers"), config.get("experts_dir")) if path)


def complete_record(key: str, record: Any, other: Any) -> Any:
    """Add the options that only ``other`` has to a recorded section, at their neutral values.

    Args:
        key: the name of the section: ``expert``, ``evaluation``, ``network``, or any other.
        record: the content of the section; returned unchanged if it has no options.
        other: the section that it will be compared with.
    """
    if not isinstance(record, Mapping) or not isinstance(other, Mapping):
        return record
    if key == "network" and str(record.get("target")).endswith(".ConvNet"):
        arguments = {**_neutral(ConvNetSettings, other.get("arguments", {})), **record.get("arguments", {})}
        return {**record, "arguments": arguments}
    kind = {"expert": ExpertSettings, "evaluation": EvaluationSettings}.get(key)
    return record if kind is None else {**_neutral(kind, other), **record}


def _neutral(kind: type[Any], names: Mapping[str, Any]) -> Config:
    return {each.name: each.metadata["neutral"] for each in fields(kind) if each.name in names}


def _section(section: str, config: Config) -> Config:
    values = config[section]
    return without_neutral(kind_of(section, values), values)


def _root(data: Config) -> str | None:
    """``data.root`` if the images depend on it; None otherwise."""
    return data.get("root") if data.get("source") in tuple(READ_FROM_ROOT) else None  # a source may be a mapping


def _arithmetic(config: Config) -> Config:
    others = arithmetic(config)
    precision = str(others.pop("precision"))
    named = {"precision": SHORT_PRECISIONS.get(precision, precision)}
    return {**without_neutral(TrainerSettings, named), **comparable(others)}


def _imported_identity(config: Config) -> Config:
    """The settings that determine imported trajectories; options of training and the seed do not affect them."""
    data = {name: value for name, value in data_identity(config).items() if name not in _OF_TRAINING}
    if config["data"].get("per_class") is None and not config["data"].get("validation_fraction"):
        data.pop("seed", None)
    expert = config["expert"]
    stored = {name: expert[name] for name in ("snapshot_dtype", "every_n_epochs", "max_epoch") if name in expert}
    return {
        "data": data,
        "network": _section("network", config),
        "epochs": expert["epochs"],
        **without_neutral(ExpertSettings, stored),
        "buffers": _absolute(config["buffers"]),
    }


def _absolute(folder: str) -> str:
    return str(Path(folder).resolve())
