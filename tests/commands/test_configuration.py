"""The configuration tree: published settings, presets, and no key that nothing reads."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning import Trainer
from torch import nn

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.network import ACTIVATIONS, NORMALIZATIONS, POOLINGS
from ast_lightning.config.schema import default_of
from ast_lightning.config.settings import option
from ast_lightning.config.trainer import OTHER_ARGUMENTS, TrainerSettings
from ast_lightning.data import ImageDataModule
from ast_lightning.distillation import TrajectoryMatchingSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation import EvaluationSettings
from ast_lightning.experts import ExpertSettings
from ast_lightning.networks import ConvNet
from ast_lightning.networks.convnet import _ACTIVATIONS, _POOLINGS
from ast_lightning.networks.layers import NORMALIZATIONS as BUILT_NORMALIZATIONS
from ast_lightning.parallel.devices import devices_of

from .conftest import ROOT, SMALL, composed, run_of


def test_method_mtt_is_the_baseline_throughout() -> None:
    run = run_of("method=mtt")
    expert = run.expert
    assert (expert.lr, expert.momentum, expert.weight_decay, expert.lr_decay) == (0.01, 0, 0, 1)
    assert (expert.clipping, expert.gradient_penalty) == (False, 0)
    assert run.distill.init == "real"
    assert (run.evaluation.weight_decay, run.evaluation.lr_decay) == (5e-4, 0.1)


@pytest.mark.parametrize(
    ("section", "read_by"),
    [
        ("expert", [field.name for field in dataclasses.fields(ExpertSettings)]),
        ("distill", [field.name for field in dataclasses.fields(TrajectoryMatchingSettings)]),
        ("evaluation", [field.name for field in dataclasses.fields(EvaluationSettings)]),
        ("data", ["_target_", *list(inspect.signature(ImageDataModule).parameters)]),
    ],
)
def test_a_section_has_a_key_for_every_setting_and_no_other(section: str, read_by: list[str]) -> None:
    assert set(composed()[section]) == set(read_by)


def test_network_keys_are_arguments_of_the_network_and_choices_are_its_own() -> None:
    own = set(inspect.signature(ConvNet).parameters) - {"channels", "num_classes", "image_size"}
    assert set(composed()["network"]) == {"_target_", *own}
    for built, named in ((BUILT_NORMALIZATIONS, NORMALIZATIONS), (_ACTIVATIONS, ACTIVATIONS), (_POOLINGS, POOLINGS)):
        assert set(built) == set(named)


def test_trainer_keys_are_arguments_of_lightnings_trainer() -> None:
    own = {field.name for field in dataclasses.fields(TrainerSettings)} - {"timeout_seconds"}
    assert own | set(OTHER_ARGUMENTS) == set(inspect.signature(Trainer).parameters)
    assert not own & set(OTHER_ARGUMENTS)


def test_every_top_level_key_is_read() -> None:
    source = "".join(path.read_text() for path in (ROOT / "ast_lightning").rglob("*.py"))
    groups = {"callbacks", "logger", "data", "network", "expert", "distill", "evaluation", "trainer"}
    for key in set(composed()) - groups:
        assert f'["{key}"]' in source, key


@pytest.mark.parametrize("preset", ["expert", "distill", "evaluation"])
def test_presets_are_the_defaults_of_the_dataclass(preset: str) -> None:
    kind = {"expert": ExpertSettings, "distill": TrajectoryMatchingSettings, "evaluation": EvaluationSettings}[preset]
    assert composed()[preset] == {each.name: default_of(each) for each in dataclasses.fields(kind)}
    assert set(yaml.safe_load((ROOT / "conf" / preset / "ast.yaml").read_text())) == {"defaults"}


@pytest.mark.slow
def test_folders_follow_from_what_determines_their_content(tmp_path: Path) -> None:
    def folders(*overrides: str) -> tuple[str, str]:
        run = run_of(*SMALL, *overrides)
        return run.experts_folder().name, run.distill_folder().name

    experts, distilled = folders()
    assert folders("logger=csv", "output_dir=elsewhere", "data.root=elsewhere") == (experts, distilled)
    assert folders("distill.max_steps=9", "distill.eval_every=3", "baselines=[]") == (experts, distilled)
    for changed in ("distill.ipc=2", "distill.lr_img=0.5", "num_experts=1"):
        assert folders(changed)[0] == experts
        assert folders(changed)[1] != distilled
    for changed in ("expert.lr=0.1", "seed=5", "network.width=4", "data.per_class=10", "data.preprocessing=none"):
        assert folders(changed)[0] != experts
        assert folders(changed)[1] != distilled


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"devices": 2}, 2),
        ({"devices": "3", "num_nodes": 2}, 6),
        ({"devices": [0, 1]}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
    ],
)
def test_devices_of(trainer: dict[str, object], count: int) -> None:
    assert devices_of(trainer) == count


@pytest.mark.parametrize("name", ["train_experts", "distill", "evaluate"])
def test_help_fits_a_screen(name: str) -> None:
    result = subprocess.run(
        [sys.executable, f"{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(name)
    assert "digits_quickstart" in result.stdout
    assert len(result.stdout.strip().splitlines()) <= 45


@dataclasses.dataclass(frozen=True)
class OwnSettings(DistillSettings):
    strength: float = option(1.0, "of the method")


class OwnMethod:
    Settings = OwnSettings


class OwnNetwork(nn.Module):
    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int], heads: int = 1) -> None:
        super().__init__()


def own_method(folder: Path, target: str) -> str:
    (folder / "distill").mkdir()
    text = f"defaults:\n  - common\n  - _self_\n_target_: {target}\nlr_img: 7\n"
    (folder / "distill" / "mine.yaml").write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


def test_a_method_of_ones_own_names_the_dataclass_of_its_options(tmp_path: Path) -> None:
    words = (own_method(tmp_path, f"{__name__}.OwnMethod"), "distill=mine")
    run = run_of(*words, "+distill.strength=2")
    assert isinstance(run.distill, OwnSettings)
    assert (run.distill.lr_img, run.distill.strength, run.distill.ipc) == (7.0, 2.0, 1)
    assert run.distill_folder().name.startswith("digits_mine_ipc1_seed0_")
    assert run_of(*words).distill_folder() == run_of(*words, "+distill.strength=1").distill_folder()
    assert run.distill_folder() != run_of(*words).distill_folder()
    for wrong, name in (("+distill.strenght=2", "strenght"), ("+distill.strength=much", "strength")):
        with pytest.raises(ConfigurationError) as caught:
            run_of(*words, wrong)
        assert caught.value.option == f"distill.{name}"
    with pytest.raises(ConfigurationError, match=r"distill\.alpha=raw: the chosen distill has no such option"):
        run_of(*words, "experiment=ast_cifar10_ipc10")


def test_a_method_without_options_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^distill\._target_=.*Settings"):
        run_of(own_method(tmp_path, f"{__name__}.OwnNetwork"), "distill=mine")


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    custom = ("network=custom", f"network._target_={__name__}.OwnNetwork")
    network = run_of(*custom, "+network.heads=3").make_network(1, 10, (8, 8))
    assert isinstance(network, OwnNetwork)
    with pytest.raises(ConfigurationError, match=r"^network\.heds=3: .*did you mean network\.heads\?$"):
        run_of(*custom, "+network.heds=3")
    with pytest.raises(ConfigurationError, match=r"^network\.width=128: .*network=custom"):
        run_of(custom[1])
    with pytest.raises(ConfigurationError, match=r"^network\.width=32: .*~network\.width ~network\.depth"):
        run_of(*custom, "experiment=digits_quickstart")


def test_a_text_that_looks_like_an_interpolation_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^data=.*interpolation.*leave \$\{ out"):
        run_of(*SMALL, r'data.class_names=["x\${a}",b,c,d,e,f,g,h,i,j]')
