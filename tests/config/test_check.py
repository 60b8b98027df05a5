"""What is rejected by name while a configuration is composed and checked, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from ast_lightning.config.__main__ import markdown
from ast_lightning.config.check import checked, nearest, settings_from
from ast_lightning.config.composition import is_rejection, rejection
from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.schema import SECTIONS, known_options
from ast_lightning.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("Additional config directory '/none' not found.\nCheck", "--config-dir=/none: there is no such folder"),
        ("Cannot find primary config 'foo'. Check", "--config-name=foo: there is no such configuration"),
        ("Primary config directory not found.\nCheck", "--config-name=…: there is no such configuration"),
    ],
)
def test_options_of_hydra_that_name_nothing(message: str, option: str) -> None:
    assert option in str(rejection(MissingConfigException(message), ["--config-dir=/none"]))


def rejected(*overrides: str) -> ConfigurationError:
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            checked(compose("config", overrides=list(overrides)))
    except ConfigurationError as error:
        return error
    except Exception as error:
        if is_rejection(error):
            return rejection(error, overrides)
        raise
    raise AssertionError(f"{overrides} are accepted")


@pytest.mark.parametrize(
    ("override", "option", "words"),
    [
        ("distill.syn_step=3", "distill.syn_step", "distill.syn_steps"),
        ("+distill.syn_step=3", "distill.syn_step", "distill.syn_steps"),
        ("ipc=10", "ipc", "distill.ipc"),
        ("+ipc=10", "ipc", "distill.ipc"),
        ("dist.ipc=10", "dist.ipc", "distill.ipc"),
        ("num_expert=3", "num_expert", "num_experts"),
        ("distil=mtt", "distil", "distill"),
        ("+trainer.limit_train_batch=1", "trainer.limit_train_batch", "no such option"),
        ("+network.widths=3", "network.widths", "network.width"),
        ("~distill.nothing", "distill.nothing", "no such option"),
        ("~distill.syn_steps", "~distill.syn_steps", "cannot be removed"),
        ("distill.ipc=abc", "distill.ipc", "whole number"),
        ("distill.ipc.two=3", "distill.ipc.two", "no such option"),
        ("network.width=2.5", "network.width", "whole number"),
        ("seed=x", "seed", "whole number"),
        ("seed=-1", "seed", "from 0 to 4294967295"),
        ("data.root=[a]", "data.root", "text or null"),
        ("data.mean=0.5", "data.mean", "null or a list"),
        ("experts_dir=[a]", "experts_dir", "text or null"),
        ("fresh=some", "fresh", "true or false"),
        ("compile=some", "compile", "auto, true or false"),
        ("compile=1", "compile", "auto, true or false"),
        ("compile=null", "compile", "auto, true or false"),
        ("expert_processes=0", "expert_processes", "from 1 to 1000 or auto"),
        ("trainer=null", "trainer", "conf/trainer/"),
        ("~trainer", "trainer", "conf/trainer/"),
        ("distill=nothing", "distill", "ast, att, datm, distribution_matching"),
        ("experiment=nothing", "experiment", "--help"),
        ("experiment=datm_cifar10_ipc_10", "experiment", "did you mean datm_cifar10_ipc10?"),
        ("data=image_folder", "data.root", "data.root=…"),
        ("network=custom", "network._target_", "network._target_=…"),
        ("network.normalization=some", "network.normalization", "instance, batch"),
        ("data.preprocessing=pca", "data.preprocessing", "standardize, zca"),
        ("distill.init=some", "distill.init", "representative, real"),
        ("expert.weight_decay=inf", "expert.weight_decay", "finite"),
        ("expert.clip_start=inf", "expert.clip_start", "finite"),
        ("expert.gradient_penalty=inf", "expert.gradient_penalty", "finite"),
        ("distill.lr_img=nan", "distill.lr_img", "finite"),
        ("distill.ipc=1,2", "distill.ipc", "-m"),
        ("hydra/launcher=nothing", "hydra/launcher", "pip install '.[sweep]'"),
        ("distill.lr_img=[1", "distill.lr_img", "brackets"),
        ("data.root=~/x", "data.root", "'data.root=\"~/x\"'"),
        ("data.root=x(1)", "data.root", "'data.root=\"x(1)\"'"),
        ("data.root=ü", "data.root", "'data.root=\"ü\"'"),
        ('output_dir="a', "output_dir", "'output_dir=\"a\"'"),
        ("distill.ipc", "distill.ipc", "distill.ipc=…"),
        ("=3", "", "option=value"),
        ("~expert", "expert", "conf/expert/"),
        ("~seed", "~seed", "cannot be removed"),
        ("~output_dir", "~output_dir", "cannot be removed"),
        ("~network.width=3", "~network.width", "cannot be removed"),
        ("+experiment=digits_quickstart", "experiment", "leave out the +"),
        ("callbacks.mine._target_=a.B", "callbacks.mine._target_", "+callbacks.mine._target_=a.B"),
        ("logger.mine._target_=a.B", "logger.mine._target_", "+logger.mine._target_=a.B"),
        ("network.heads=3", "network.heads", "choose one of network.width, network.depth"),
        ("data.source._target_=a.b", "data.source._target_", "'data.source={_target_: "),
        ("data.image_size=100000", "data.image_size", "from 1 to 4096"),
        ("seed=4294967296", "seed", "from 0 to 4294967295"),
        ("data.source=imagenet1k", "data.source", "digits, mnist"),
        ("data.mean=[0.5,2]", "data.mean[1]", "from 0 to 1"),
        ("data.channels=3", "data.channels", "not decoded"),
        ("data.resize=squash", "data.resize", "not decoded"),
        ("data.classes=1", "data.classes", "at least two"),
        ("expert.regularizers=[{_target_: a.b},3]", "expert.regularizers[1]", "_target_"),
        ("expert.regularizers={a: 1}", "expert.regularizers", "a list"),
        ("baselines={a: 1}", "baselines", "a list"),
        ("expert.batch_size=0", "expert.batch_size", "at least 1"),
        ("expert.batch_size='${nothing}'", "expert.batch_size", "nothing"),
        ("expert.weight_decay=1e30", "expert.weight_decay", "from 0 to 1000"),
        ("expert.lr=1e31", "expert.lr", "absolute values"),
        (f"expert.lr={10**400}", "expert.lr", "finite"),
        ("trainer.accelerator=tpu", "trainer.accelerator", "auto, cpu, gpu"),
        ("trainer.strategy=fsdp", "trainer.strategy", "auto or ddp"),
        ("trainer.profiler=all", "trainer.profiler", "simple, advanced"),
        ("trainer.devices=0", "trainer.devices", "one device"),
        ("trainer.devices=[1,1]", "trainer.devices", "each only once"),
        ("trainer.devices=-1", "trainer.devices", "auto"),
        ("trainer.fast_dev_run=some", "trainer.fast_dev_run", "true, false or a whole number"),
        ("trainer.timeout_seconds=1e300", "trainer.timeout_seconds", "from 1 to"),
        ("output_dir=''", "output_dir", "text"),
        ('data.root="a\nb"', "data.root", "printable"),
        ("output_dir=${nothing}", "output_dir", "nothing"),
    ],
)
def test_it_is_rejected_by_name(override: str, option: str, words: str) -> None:
    error = rejected(override)
    assert error.option == option
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("network", "override", "words"),
    [
        (["network=custom", "network._target_=my.Net"], "network.heads=3", "add a +: +network.heads=3"),
        (["network=mlp"], "network.heads=3", "has no options"),
        (["network=resnet18"], "network.dept=3", "network.normalization, network.downsampling, network.stem"),
        (["data._target_=my.Data"], "data.heads=3", "add a +: +data.heads=3"),
    ],
)
def test_an_unknown_option_of_the_chosen_class(network: list[str], override: str, words: str) -> None:
    assert words in rejected(*network, override).remedy


@pytest.mark.parametrize("section", SECTIONS)
def test_a_removed_section_is_named_even_where_its_options_are_set(section: str) -> None:
    name = next(name for name in known_options() if name.startswith(f"{section}.") and "_target_" not in name)
    assert rejected(f"~{section}").option == rejected(f"~{section}", f"{name}=1").option == section


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5", "²"])
def test_a_launchers_number_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert rejected().option == name


def test_a_long_value_with_escapes_stays_one_line() -> None:
    text = str(ConfigurationError("data.root", "a\x1b[31m\n" + "x" * 9000, "it is odd", "change it"))
    assert text.isprintable()
    assert len(text) < 1000


def test_text_that_looks_like_an_interpolation_is_text() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(compose("config", overrides=['output_dir="\\${seed}"']))
    assert config["output_dir"] == "${seed}"


def test_arguments_of_lightning_and_of_custom_networks_are_accepted() -> None:
    overrides = ["+trainer.deterministic=true", "network=custom", "network._target_=my.Net", "+network.heads=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(compose("config", overrides=overrides))
    assert config["trainer"]["deterministic"] is True
    assert config["network"] == {"_target_": "my.Net", "heads": 3}


def test_values_take_the_type_of_their_option() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(compose("config", overrides=["data.root=5", "experts_dir=7", "distill.lr_img=3"]))
    assert (config["data"]["root"], config["experts_dir"]) == ("5", "7")
    assert isinstance(config["distill"]["lr_img"], float)


def own_files(folder: Path) -> list[str]:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text("distill:\n  ipc: 3\n")
    wrong = "# @package _global_\ndistill:\n  {}\n"
    (folder / "experiment" / "unknown.yaml").write_text(wrong.format("ipcs: 3"))
    (folder / "experiment" / "typed.yaml").write_text(wrong.format("ipc: many"))
    (folder / "distill").mkdir()
    own = "defaults:\n  - common\n  - _self_\n_target_: my_package.MyMethod\nlr_img: 7\nstrength: 2\n"
    (folder / "distill" / "mine.yaml").write_text(own)
    return [f"hydra.searchpath=[file://{folder}]"]


@pytest.mark.parametrize(
    ("experiment", "option", "words"),
    [
        ("mine", "experiment", "# @package _global_"),
        ("unknown", "distill.ipcs", "experiment/unknown.yaml"),
        ("typed", "distill.ipc", "experiment/typed.yaml"),
    ],
)
def test_experiment_files_are_checked(tmp_path: Path, experiment: str, option: str, words: str) -> None:
    error = rejected(*own_files(tmp_path), f"experiment={experiment}")
    assert error.option == option
    assert words in str(error)


def test_a_method_of_ones_own_extends_the_common_options(tmp_path: Path) -> None:
    search = own_files(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        section = checked(compose("config", overrides=[*search, "distill=mine", "distill.strength=5"]))["distill"]
    assert (section["_target_"], section["lr_img"], section["strength"]) == ("my_package.MyMethod", 7.0, 5)
    assert (section["ipc"], "syn_steps" in section) == (1, False)
    assert rejected(*search, "distill=mine", "distill.ipc=0").option == "distill.ipc"
    assert rejected(*search, "distill=mine", "distill.syn_steps=3").option == "distill.syn_steps"


def test_unknown_options_of_hydra_are_named() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=["+hydra.sweepr=1"], return_hydra_config=True)
    with pytest.raises(ConfigurationError, match=r"^hydra\.sweepr=1: .*did you mean hydra\.sweeper"):
        checked(config)


def test_options_of_another_method_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"distill\.syn_steps=3: the chosen distill has no such option"):
        settings_from(DistillSettings, {"ipc": 1, "syn_steps": 3, "lr_lr": 1e-5})


def test_nearest_prefers_the_section_that_was_named() -> None:
    assert nearest("evaluation.epoch") == "evaluation.epochs"
    assert nearest("expert.momentums") == "expert.momentum"
    assert nearest("evaluation.momentums") == "evaluation.momentum"
    assert nearest("penalty_norm") == "expert.penalty_norm"
    assert nearest("weight_decay") == "expert.weight_decay or evaluation.weight_decay"
    assert nearest("qqqq") is None


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (["distill.ipc=abc"], "error: distill.ipc=abc: "),
        (["distill.syn_step=3"], "error: distill.syn_step=3: "),
        (["distill.ipc=0"], "error: distill.ipc=0: "),
        (["-m", "distill.ipc=1,0"], "error: distill.ipc=0: "),
        (["-m", "+distill.foo=1,2"], "error: distill.foo=1: "),
        (["-m", "distill.ipc=1,abc"], "error: distill.ipc=abc: "),
        (["-m", "+ipc=1,2"], "error: ipc=1: "),
        (["network.width=2.5"], "error: network.width=2.5: "),
    ],
)
def test_scripts_end_with_one_line_and_status_2_without_torch(tmp_path: Path, words: list[str], starts: str) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(ROOT / "distill.py"), *words, f"output_dir={tmp_path / 'out'}"]
    result = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(starts)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_launchers_variable_is_checked_before_lightning_reads_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "distill.py"), f"output_dir={tmp_path}"]
    path = {"PATH": "/usr/bin:/bin", "LOCAL_RANK": "abc"}
    result = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: LOCAL_RANK=abc: ")
    assert len(result.stderr.strip().splitlines()) == 1


def test_every_option_has_a_help_text_and_the_document_is_current() -> None:
    for name, field in known_options().items():
        assert len(field.metadata["help"]) > 5, name
    written = (ROOT / "docs" / "options.md").read_text()
    assert written == markdown(), "run: python -m ast_lightning.config > docs/options.md"
