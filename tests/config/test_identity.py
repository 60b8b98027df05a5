"""Identities: what leaves a trace in them, and folders of earlier versions."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from ast_lightning.config import identity as identities
from ast_lightning.config.check import checked
from ast_lightning.config.distill import DistributionMatchingSettings
from ast_lightning.config.evaluation import EvaluationSettings
from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.identity import complete_record, distill_identity, experts_identity, find_folder, short_hash
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
from ast_lightning.config.schema import SECTIONS
from ast_lightning.config.settings import option, without_neutral
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.trajectories.records import first_difference

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("config", overrides=list(overrides)))


EARLIER_DEFAULTS = ("distill.outer=sgd", "distill.max_start_epoch=20", "distill.lr_teacher=0.01")


def both(config: dict[str, Any]) -> tuple[str, str]:
    return short_hash(experts_identity(config)), short_hash(distill_identity(config))


OTHER_VALUES: dict[str, Any] = {  # another valid value, where adding to the default gives none
    "data.source": "mnist",
    "data.preprocessing": "zca",
    "data.augmentation": "color",
    "network.normalization": "batch",
    "network.activation": "gelu",
    "network.pooling": "max",
    "expert.penalty_norm": "sample",
    "expert.snapshot_dtype": "float16",
    "distill.init": "noise",
    "distill.outer": {"_target_": "my.step"},
    "distill.windows": {"_target_": "my.windows"},
    "distill.matching": {"_target_": "my.matching"},
    "distill.intermediate": "none",
    "distill.engine": "truncated",
    "distill.split": "batch",
    "trainer.precision": "64-true",
    "compile": True,
    "expert_processes": 2,
    "fast_dev_run": True,
}


CHOSEN_BY: dict[Any, tuple[str, ...]] = {  # the overrides that choose a dataclass other than the default one
    DistributionMatchingSettings: ("method=dm",),
    MLPSettings: ("network=mlp",),
    LeNetSettings: ("network=lenet",),
    AlexNetSettings: ("network=alexnet",),
    VGGSettings: ("network=vgg11",),
    ResNet18Settings: ("network=resnet18",),
    TorchvisionSettings: ("network=torchvision", "network.name=resnet18"),
    TimmSettings: ("network=timm", "network.name=resnet18"),
}


def another(field: Field[Any], name: str, value: Any) -> Any:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if "float" in str(field.type) and value else value + 1
    if isinstance(value, list):
        return ["random"]
    if value is None:
        return 1 if "int" in str(field.type) else 0.5 if "float" in str(field.type) else "another"
    return f"{value}x"


def changed() -> list[tuple[str, bool, dict[str, Any], dict[str, Any]]]:
    """For every option its name, whether it changes results, the default configuration, and one with another value."""
    result = []
    for kind in (RootSettings, *(kind for kinds in SECTIONS.values() for kind in kinds)):
        default = composed(*CHOSEN_BY.get(kind, ()))
        for field in fields(kind):
            config = deepcopy(default)
            values = config[kind.section] if kind.section else config
            name = f"{kind.section}.{field.name}".lstrip(".")
            values[field.name] = another(field, name, values[field.name])
            result.append((name, field.metadata["result"], default, config))
    return result


def test_configurations_that_differ_in_one_option_that_matters_never_coincide() -> None:
    found = {both(composed(*words))[1]: "default" for words in ((), ("method=dm",))}
    assert len(found) == 2
    for name, matters, default, config in changed():
        if name.startswith("evaluation."):  # measures, and changes no image
            continue
        key = both(config)[1]
        if matters:
            assert key not in found, f"{name} and {found[key]}"
            found[key] = name
        else:
            assert key == both(default)[1], name


def test_experts_depend_on_data_network_expert_and_arithmetic_alone() -> None:
    for name, matters, default, config in changed():
        of_experts = name.startswith(("data.", "network.", "expert.", "seed", "tf32", "buffers", "trainer."))
        assert (both(config)[0] != both(default)[0]) == (matters and of_experts), name


def test_an_option_that_is_added_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Later(TrajectoryMatchingSettings):
        rounds: int = option(1, "new")

    @dataclass(frozen=True)
    class LaterExpert(ExpertSettings):
        sharpness: float = option(0.5, "new, on by default", neutral=0.0)

    before = composed()
    default = both(before)
    monkeypatch.setitem(SECTIONS, "distill", (Later,))
    monkeypatch.setitem(SECTIONS, "expert", (LaterExpert,))
    after = deepcopy(before)
    after["distill"]["rounds"], after["expert"]["sharpness"] = 1, 0
    assert both(after) == default
    after["expert"]["sharpness"] = 0.5  # its default is not what runs were before
    assert both(after)[0] != default[0]
    after["expert"]["sharpness"], after["distill"]["rounds"] = 0, 2
    assert both(after)[0] == default[0]
    assert both(after)[1] != default[1]


def test_another_default_changes_no_identity_of_what_runs_as_before() -> None:
    @dataclass(frozen=True)
    class Later(EvaluationSettings):
        epochs: int = option(300, "changed", neutral=1000)

    assert without_neutral(Later, {"epochs": 1000}) == without_neutral(EvaluationSettings, {"epochs": 1000}) == {}
    assert without_neutral(Later, {"epochs": Later().epochs}) == {"epochs": 300.0}


def test_a_rate_without_effect_changes_no_identity() -> None:
    config = composed()
    assert config["distill"]["lr_labels"] is None
    before = deepcopy(config)
    before["distill"]["lr_labels"] = 1.0  # as recorded before it was null
    assert both(before) == both(config)
    soft = composed("distill.labels=soft", "distill.lr_labels=1")
    assert "lr_labels" not in distill_identity(soft)["distill"]


def test_numbers_are_compared_by_value_and_no_number_is_a_truth_value() -> None:
    assert without_neutral(ExpertSettings, {"lr": 1, "clipping": 1}) == {"lr": 1.0, "clipping": 1.0}
    assert without_neutral(ExpertSettings, {"gradient_penalty": 2, "clipping": True}) == {}
    assert both(composed("distill.lr_img=7")) == both(composed("distill.lr_img=7.0"))
    assert both(composed("trainer.precision=32")) == both(composed())


def test_everything_of_a_class_of_ones_own_counts() -> None:
    own = ("network=custom", "network._target_=my.Net")
    assert both(composed(*own))[0] != both(composed())[0]
    assert both(composed(*own, "+network.width=128"))[0] != both(composed(*own))[0]
    method = deepcopy(composed())
    method["distill"]["_target_"] = "my.Method"
    assert both(method)[0] == both(composed())[0]
    assert both(method)[1] != both(composed())[1]


def test_imported_trajectories_do_not_depend_on_training() -> None:
    default = both(composed("buffers=there"))
    assert both(composed("buffers=there", "expert.lr=0.5", "seed=3"))[0] == default[0]
    assert both(composed("buffers=there", "seed=3"))[1] != default[1]
    assert both(composed("buffers=there", "data.per_class=3", "seed=3"))[0] != default[0]
    assert both(composed("buffers=elsewhere"))[0] != default[0]


def as_571d69b(config: dict[str, Any]) -> dict[str, Any]:
    """The record that the version of commit 571d69b would have written."""
    old = deepcopy(config)
    for name in ("windows", "matching", "outer", "_target_", "schedule", "recoveries", "alpha"):
        del old["distill"][name]
    del old["derived"]
    old["distill"]["learn_lr"] = config["distill"]["alpha"] == "raw"
    old["distill"] |= {"windows_per_step": None, "split": "windows", "lr_img": 1000}
    old["trainer"]["logger"] = "tensorboard"
    return old


def test_a_folder_of_an_earlier_version_is_found_by_what_it_records(tmp_path: Path) -> None:
    config = composed(*EARLIER_DEFAULTS)
    own = distill_identity(config)
    folder = tmp_path / f"digits_{short_hash(own)}"
    assert find_folder(folder, "config.json", own, distill_identity) == folder  # nothing is there
    for name, content in (
        ("digits_00000000", as_571d69b(composed(*EARLIER_DEFAULTS, "seed=1"))),
        ("digits_97e9ba57", as_571d69b(config)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    (tmp_path / "digits_11111111").mkdir()
    (tmp_path / "digits_11111111" / "config.json").write_text("no JSON")
    assert find_folder(folder, "config.json", own, distill_identity) == tmp_path / "digits_97e9ba57"
    two = composed(*EARLIER_DEFAULTS, "trainer.devices=2", "distill.windows_per_step=2")
    (tmp_path / "digits_97e9ba57" / "config.json").write_text(json.dumps({"config": as_571d69b(two)}))
    assert find_folder(folder, "config.json", own, distill_identity) == folder
    own = distill_identity(two)
    assert find_folder(folder, "config.json", own, distill_identity) == tmp_path / "digits_97e9ba57"
    folder.mkdir()
    assert find_folder(folder, "config.json", own, distill_identity) == folder


def test_a_fixed_learning_rate_of_an_earlier_version_is_recognised(tmp_path: Path) -> None:
    config = composed(*EARLIER_DEFAULTS, "distill.alpha=fixed")
    assert distill_identity(as_571d69b(config)) == distill_identity(config)
    assert distill_identity(as_571d69b(config)) != distill_identity(as_571d69b(composed(*EARLIER_DEFAULTS)))


def test_a_relative_root_hides_an_earlier_folder_only_where_it_names_the_images(tmp_path: Path) -> None:
    def found(*overrides: str) -> bool:
        config = composed(*EARLIER_DEFAULTS, *overrides)
        own = distill_identity(config)
        folder, earlier = tmp_path / f"run_{short_hash(own)}", tmp_path / "run_00000000"
        earlier.mkdir(exist_ok=True)
        (earlier / "config.json").write_text(json.dumps(as_571d69b(config)))
        return find_folder(folder, "config.json", own, distill_identity) == earlier

    assert found("data=cifar10")  # whose root is the relative folder data
    assert found("data=image_folder", f"data.root={tmp_path}")
    assert not found("data=image_folder", "data.root=photos")


def test_records_are_compared_with_options_that_were_added_since(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Later(ExpertSettings):
        sharpness: float = option(0.5, "new", neutral=0.0)

    monkeypatch.setattr(identities, "ExpertSettings", Later)
    stored = {"lr": 0.003}

    def difference(wanted: dict[str, Any]) -> Any:
        return first_difference(complete_record("expert", stored, wanted), wanted, "expert")

    assert difference({**stored, "sharpness": 0}) is None
    assert difference({**stored, "sharpness": 0.5}) == ("expert.sharpness", 0.0, 0.5)
    network = {"target": "ast_lightning.networks.convnet.ConvNet", "arguments": {"width": 8}}
    later = {"target": "ast_lightning.networks.convnet.ConvNet", "arguments": {"width": 8, "depth": 4}}
    assert complete_record("network", network, later)["arguments"] == {"width": 8, "depth": ConvNetSettings().depth}
    assert complete_record("network", {"target": "my.Net", "arguments": {}}, later)["arguments"] == {}
    assert complete_record("data", {"name": "digits"}, {"name": "mnist"}) == {"name": "digits"}
