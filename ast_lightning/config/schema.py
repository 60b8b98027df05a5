"""The dataclass of each section, and the Hydra schemas that the files in conf/ extend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ast_lightning.config.data import DataSettings
from ast_lightning.config.distill import DistillSettings, DistributionMatchingSettings
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.network import (
    AlexNetSettings,
    ConvNetSettings,
    LeNetSettings,
    MLPSettings,
    ResNet18Settings,
    TimmSettings,
    TorchvisionSettings,
    VGGSettings,
)
from ast_lightning.config.root import RootSettings
from ast_lightning.config.settings import Settings, schema_of
from ast_lightning.config.trainer import TrainerSettings
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings

_PACKAGE = Path(__file__).parents[1]
CONFIGURATION = next((each for each in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if each.is_dir()), _PACKAGE)
"""The folder of the YAML files: inside the package if it is installed, beside it in the repository."""

SECTIONS: dict[str, tuple[type[Settings], ...]] = {  # the possible dataclasses of a section; _target_ selects one
    "data": (DataSettings,),
    "network": (
        ConvNetSettings,
        MLPSettings,
        LeNetSettings,
        AlexNetSettings,
        VGGSettings,
        ResNet18Settings,
        TorchvisionSettings,
        TimmSettings,
    ),
    "expert": (ExpertSettings,),
    "distill": (TrajectoryMatchingSettings, DistributionMatchingSettings),
    "evaluation": (EvaluationSettings,),
    "trainer": (TrainerSettings,),
}
FREE_SECTIONS = ("logger", "callbacks")
"""Sections whose keys are arguments of third-party classes; they are not checked."""
GLOBAL_GROUPS = ("experiment", "method", "search", "launch")
"""Groups whose files set only options of other sections."""

_NAMES: dict[type[Settings], str] = {
    ConvNetSettings: "base_convnet",
    MLPSettings: "base_mlp",
    LeNetSettings: "base_lenet",
    AlexNetSettings: "base_alexnet",
    VGGSettings: "base_vgg",
    ResNet18Settings: "base_resnet18",
    TorchvisionSettings: "base_torchvision",
    TimmSettings: "base_timm",
    DistillSettings: "common",
    TrajectoryMatchingSettings: "trajectory_matching",
    DistributionMatchingSettings: "distribution_matching",
}
"""The schemas that are not called ``base``."""


def register() -> None:
    """Add the schemas to Hydra's ConfigStore; a second call has no effect."""
    kinds: list[type[Settings]] = [*all_kinds(), DistillSettings]
    for kind in kinds:
        name, group = _NAMES.get(kind, "base"), kind.section or None
        node = schema_of(kind)
        extended = name == "common" or group is None or (group == "network" and kind is not ConvNetSettings)
        if extended:  # untyped: files that extend these add keys, and experiments set options of ConvNet
            node = OmegaConf.create({each.name: default_of(each) for each in fields(kind)})
        ConfigStore.instance().store(name=name, group=group, node=node, provider="ast_lightning")


def default_of(field: Field[Any]) -> Any:
    """The default of an option."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def all_kinds() -> list[type[Settings]]:
    """The dataclasses of all sections, and that of the top level."""
    return [RootSettings, *(kind for kinds in SECTIONS.values() for kind in kinds)]


def kind_of(section: str, values: Mapping[str, Any]) -> type[Settings] | None:
    """The dataclass of a composed section; None if ``_target_`` names a third-party class."""
    for kind in SECTIONS[section]:
        if getattr(kind, "_target_", None) in (None, values.get("_target_")):
            return kind
    return None


def known_options() -> dict[str, Field[Any]]:
    """Every option by its full name, such as ``distill.ipc``."""
    return {f"{kind.section}.{each.name}".lstrip("."): each for kind in all_kinds() for each in fields(kind)}


register()  # on import, because composing a configuration needs the schemas
