"""Every mistake a user can make is named, with the option, its value and the remedy, before any long work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from torchvision.utils import save_image

from ast_lightning.commands.distill import distill
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.composition import check_choices, choices_of_groups
from ast_lightning.errors import ConfigurationError, DistillationDiverged
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore

from .conftest import ROOT, SMALL, Command, Script, composed, run_of


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@pytest.mark.parametrize(
    ("overrides", "option", "words"),
    [
        (["seed=7"], "experts_dir", ["no trajectories", "train_experts.py"]),
        (["num_experts=3"], "num_experts", ["the first is expert 2", "num_experts=2"]),
        (["distill.max_start_epoch=4"], "distill.max_start_epoch", ["expert.epochs=4", "max_start_epoch=3"]),
        (
            ["distill.expert_epochs=5", "distill.syn_steps=8"],
            "distill.max_start_epoch",
            ["distill.expert_epochs=5", "lower distill.expert"],
        ),
        (["distill.ipc=0"], "distill.ipc", ["from 1 to"]),
        (["distill.ipc=21"], "distill.ipc", ["has only 20 training images", "at most 20"]),
        (["distill.ipc=21", "distill.init=real"], "distill.ipc", ["has only 20 training images"]),
        (["distill.batch_syn=11"], "distill.batch_syn", ["only 10 images", "at most 10"]),
        (["distill.init=kmeans"], "distill.init", ["representative, real, noise"]),
        (["distill.intermediate=some"], "distill.intermediate", ["none, aggregate or adaptive"]),
        (["distill.syn_steps=1"], "distill.syn_steps", ["expert_epochs=2", "intermediate=none"]),
        (["distill.syn_steps=many"], "distill.syn_steps", ["whole number", "K, inner steps"]),
        (["distill.lr_img=-1"], "distill.lr_img", ["finite number above 0"]),
        (["distill.momentum=1"], "distill.momentum", ["at least 0 and below 1"]),
        (["distill.ema=1"], "distill.ema", ["above 0 and below 1"]),
        (["distill.ema=0"], "distill.ema", ["above 0 and below 1"]),
        (["distill.crops=2"], "distill.crops", ["set distill.canvas=2"]),
        (["distill.canvas=0"], "distill.canvas", ["from 1 to"]),
        (["distill.canvas=2", "data.preprocessing=zca"], "distill.canvas", ["data.preprocessing=standardize"]),
        (["distill.canvas=5"], "distill.canvas", ["25 per class", "has only 20 training images"]),
        (["distill.warm_start=nowhere"], "distill.warm_start", ["no such folder"]),
        (["network._target_=nowhere.Net"], "network._target_", ["cannot be imported", "PYTHONPATH"]),
        (["data.source=imagenet1k"], "data.source", ["digits", "cifar10", "image_folder"]),
        (["data.augmentation=color_twirl"], "data.augmentation", ["twirl", "crop"]),
        (["data.preprocessing=pca"], "data.preprocessing", ["standardize, zca"]),
        (["data.validation_fraction=1"], "data.validation_fraction", ["below 1"]),
        (["data=image_folder"], "data.root", ["data.root=…"]),
        (["expert.penalty_norm=infinity"], "expert.penalty_norm", ["pixel", "sample"]),
        (["expert.epochs=0"], "expert.epochs", ["from 1 to"]),
        (["expert.snapshot_dtype=float8"], "expert.snapshot_dtype", ["float32, bfloat16 or float16"]),
        (["expert.every_n_epochs=0"], "expert.every_n_epochs", ["from 1 to"]),
        (["expert.max_epoch=0"], "expert.max_epoch", ["from 1 to"]),
        (
            ["expert.every_n_epochs=2", "distill.expert_epochs=3"],
            "distill.expert_epochs",
            ["expert.every_n_epochs=2", "distill.expert_epochs=2"],
        ),
        (["expert.max_epoch=2"], "distill.max_start_epoch", ["expert.max_epoch=2", "distill.max_start_epoch=1"]),
        (["evaluation.networks=0"], "evaluation.networks", ["from 1 to"]),
        (["num_experts=0"], "num_experts", ["from 1 to"]),
        (["num_experts=many"], "num_experts", ["whole number"]),
        (["expert_index=[0,1]"], "expert_index", ["whole number", "or null"]),
        (["expert_index=0-4"], "expert_index", ["whole number", "or null"]),
        (["seed=abc"], "seed", ["whole number"]),
        (["seed=-1"], "seed", ["from 0 to 4294967295"]),
        (["baselines=null"], "baselines", ["baselines=[random,representative,whole]"]),
        (["baselines=random"], "baselines", ["it must be a list"]),
        (["trainer.num_nodes=auto"], "trainer.num_nodes", ["whole number"]),
        (["+trainer.limit_train_batches=2"], "trainer.limit_train_batches", ["data.per_class"]),
        (["expert_index=-1"], "expert_index", ["from 0 to"]),
        (["baselines=[guess]"], "baselines[0]", ["random, representative or whole"]),
        (["trainer.logger=csv"], "trainer.logger", ["logger=tensorboard, csv"]),
        (["+logger.mine=csv"], "logger.mine", ["+logger.mine._target_="]),
        (["+logger.mine._target_=no_such_package.Logger"], "logger.mine._target_", ["no_such_package"]),
        (["+callbacks.mine._target_=collections.OrderedDict"], "callbacks.mine", ["Callback"]),
        (["+trainer.overfit_batch=1"], "trainer.overfit_batch", ["no such option"]),
        (["+trainer.max_steps=2"], "trainer.max_steps", ["sets this itself", "distill.max_steps"]),
        (["+trainer.val_check_interval=1"], "trainer.val_check_interval", ["distill.eval_every"]),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches", ["distill.windows_per_step"]),
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches", ["evaluation.networks"]),
        (["+trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch", ["distill.eval_every"]),
        (["compile=true", "distill.engine=autograd"], "compile", ["is not compiled", "compile=auto"]),
        (["tf32=some"], "tf32", ["true or false"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and "=" in value[0] else "",
)
def test_it_is_refused_by_name_and_leaves_nothing_behind(
    output: Path, tmp_path: Path, overrides: list[str], option: str, words: list[str]
) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output / "experts", folder / "experts")
    before = contents(folder)
    with pytest.raises(ConfigurationError) as caught:
        distill(run_of(*SMALL, f"output_dir={folder}", *overrides))
    message = str(caught.value)
    assert message.startswith(f"{option}=")
    assert "Remedy: " in message
    for word in words:
        assert word in message
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("overrides", "option", "words"),
    [
        (["network.depth=4"], "network.depth", ["8×8", "lower network.depth"]),
        (["network.activation=tanh"], "network.activation", ["relu, leaky_relu"]),
        (["data.per_class=1000"], "data.per_class", ["images"]),
        (["data=image_folder", "data.root=/nowhere"], "data.root", ["/nowhere"]),
        (["data=mnist", "data.root=/nowhere", "data.download=false"], "data.root", ["/nowhere", "download"]),
        (["data.preprocessing=zca", "data.zca_max_features=10"], "data.preprocessing", ["GiB", "standardize"]),
        (["distill.max_start_epoch=4"], "distill.max_start_epoch", ["expert.epochs=4", "max_start_epoch=3"]),
        (
            ["distill.waypoints=3", "expert.every_n_epochs=2"],
            "distill.waypoints",
            ["every_n_epochs=2 leaves some out"],
        ),
        (["data.zca_eps=0"], "data.zca_eps", ["above 0"]),
        (["trainer=gpu"], "trainer.accelerator", ["gpu", "trainer=cpu"]),
        (["trainer.devices=[0,1]"], "trainer.devices", ["CPU"]),
        (["trainer.precision=7"], "trainer.precision", ["32-true, 64-true"]),
        (["data.image_size=[8,8]"], "data.image_size", ["whole number"]),
        (["data.per_class=true"], "data.per_class", ["whole number"]),
        (["+trainer.max_epochs=1"], "trainer.max_epochs", ["sets this itself", "expert.epochs"]),
        (["+trainer.callbacks=[]"], "trainer.callbacks", ["+callbacks.mine._target_="]),
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches", ["would not be those of the networks"]),
        (["+trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch", ["after every epoch"]),
        (["+trainer.val_check_interval=1"], "trainer.val_check_interval", ["after every epoch"]),
        (["+trainer.overfit_batches=1"], "trainer.overfit_batches", ["data.per_class"]),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches", ["expert.batch_size"]),
        (["expert.sam_rho=0.1"], "expert.sam_rho", ["no effect", "expert.optimizer=gsam"]),
        (["expert.optimizer=gsam", "trainer.precision=16-mixed"], "trainer.precision", ["gsam", "bf16-mixed"]),
        (
            ["network.normalization=batch", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
            "trainer.devices",
            ["features.1 (BatchNorm2d)", "expert_processes"],
        ),
    ],
)
def test_it_is_refused_before_experts_are_trained(
    tmp_path: Path, overrides: list[str], option: str, words: list[str]
) -> None:
    if overrides == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so that asking for one is no mistake")
    with pytest.raises(ConfigurationError) as caught:
        train_experts(run_of(*SMALL, f"output_dir={tmp_path / 'output'}", *overrides))
    message = str(caught.value)
    assert message.startswith(f"{option}=")
    assert "Remedy: " in message
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("epoch_*"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("network.width=4", ["network.arguments.width = 8", "network.arguments.width = 4"]),
        ("network.activation=gelu", ["activation = relu", "activation = gelu"]),
        ("data.per_class=10", ["data.", "fingerprint"]),
        ("data.preprocessing=zca", ["data.preprocessing", "standardize", "zca"]),
        ("data.preprocessing=none", ["data.preprocessing", "standardize", "none"]),
    ],
)
def test_trajectories_of_something_else_are_refused(output: Path, changed: str, words: list[str]) -> None:
    experts = run_of(*SMALL, f"output_dir={output}").experts_folder()
    with pytest.raises(ConfigurationError) as caught:
        distill(run_of(*SMALL, f"output_dir={output}", f"experts_dir={experts}", changed))
    assert any(word in str(caught.value) for word in words)
    assert str(experts) in str(caught.value)
    assert "fresh=true" not in str(caught.value)  # it would move the experts of another run aside


def test_a_network_of_another_class_is_named_by_its_class(output: Path) -> None:
    words = (f"output_dir={output}", f"experts_dir={run_of(*SMALL, f'output_dir={output}').experts_folder()}")
    with pytest.raises(ConfigurationError, match=r"network\.target = .*ConvNet, and .*network\.target = .*MLP"):
        distill(run_of(*(word for word in SMALL if not word.startswith("network.")), "network=mlp", *words))


def test_preprocessing_statistics_of_something_else_are_refused(output: Path) -> None:
    experts = run_of(*SMALL, f"output_dir={output}").experts_folder()
    other = ("data.mean=[0.1]", "data.std=[0.5]", f"experts_dir={experts}")
    with pytest.raises(ConfigurationError, match=r"data\.preprocessing"):
        distill(run_of(*SMALL, f"output_dir={output}", *other))


@pytest.mark.parametrize(
    "group", ["data", "network", "expert", "distill", "evaluation", "trainer", "experiment", "method"]
)
def test_an_unknown_choice_names_what_exists(group: str) -> None:
    with pytest.raises(MissingConfigException, match="Available options"):
        composed(f"{group}=no_such_choice")


@pytest.mark.parametrize(("group", "base"), [("data", "base"), ("distill", "common"), ("experiment", "base_published")])
def test_a_file_that_others_extend_is_no_choice(group: str, base: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert base not in choices_of_groups()
        assert "digits_quickstart" in choices_of_groups()
        check_choices({group: "ast", "hydra/launcher": "basic"})
        with pytest.raises(ConfigurationError, match=f"^{group}={base}: .*choose one of "):
            check_choices({group: base})


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigCompositionException, match="imges_per_class"):
        composed("distill.imges_per_class=1")


def test_an_image_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        settings = ("data=image_folder", "data.image_size=8", "network.depth=1", f"data.root={tmp_path / 'images'}")
        with pytest.raises(ConfigurationError, match=words):
            run_of(*settings).data.setup()

    (tmp_path / "images").mkdir()
    refused("train")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            if name == "cat":
                save_image(torch.rand(3, 9, 12), tmp_path / "images" / split / name / "1.png")
    refused("dog")
    for split in ("train", "test"):
        (tmp_path / "images" / split / "dog" / "1.png").write_bytes(b"this is no image")
    refused(r"1\.png")


@pytest.mark.parametrize("name", ["dataset.json", "images.safetensors", "preprocessing.safetensors"])
def test_an_incomplete_artifact_is_named(output: Path, tmp_path: Path, command: Command, name: str) -> None:
    command("distill", output, "seed=0")
    shutil.copytree(run_of(*SMALL, f"output_dir={output}").synthetic_folder(), tmp_path / "artifact")
    (tmp_path / "artifact" / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        command("evaluate", output, f"synthetic={tmp_path / 'artifact'}")


def test_an_artifact_of_other_images_is_refused(output: Path, tmp_path: Path, command: Command) -> None:
    command("distill", output, "seed=0")
    artifact = run_of(*SMALL, f"output_dir={output}").synthetic_folder()
    with pytest.raises(ConfigurationError, match=r"synthetic=.*16"):
        command("evaluate", output, f"synthetic={artifact}", "data.image_size=16")


def test_a_diverged_expert_is_named_and_none_of_its_snapshots_is_written(tmp_path: Path, command: Command) -> None:
    words = ("expert.lr=1e6", "num_experts=1")
    for _ in range(2):  # the same command says the same
        with pytest.raises(
            ConfigurationError, match=r"^expert\.lr=1000000\.0: expert 0 diverged in epoch \d, .* lower"
        ):
            command("train_experts", tmp_path, *words)
    store = TrajectoryStore.open(run_of(*SMALL, *words, f"output_dir={tmp_path}").experts_folder())
    assert store.experts() == []
    written = sorted(store.expert_folder(0).glob("epoch_*.safetensors"))
    assert written
    assert all(store.read_snapshot(0, int(path.stem[6:])).isfinite().all() for path in written)


def test_a_warm_start_of_other_statistics_is_refused(output: Path, command: Command) -> None:
    command("distill", output)
    start = run_of(*SMALL, f"output_dir={output}").synthetic_folder()
    other = ("data.preprocessing=standardize", "data.mean=[0.1]", "data.std=[0.9]")
    command("train_experts", output, *other)
    with pytest.raises(ConfigurationError, match=r"^distill\.warm_start=.*: the mean of its preprocessing"):
        command("distill", output, *other, f"distill.warm_start={start}")


def test_a_store_from_python_without_statistics_is_refused(output: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(output / "experts", tmp_path / "experts")
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}").experts_folder())
    metadata = {name: value for name, value in store.metadata.items() if name != "preprocessing_fingerprint"}
    made = TrajectoryStore.create(tmp_path / "made", metadata)
    with pytest.raises(ConfigurationError, match=r"^experts_dir=.*safetensors is missing.*save_preprocessing\("):
        command("distill", tmp_path, f"experts_dir={made.folder}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            (
                "distill.lr_img=1e30",
                "distill.outer=sgd",
            ),
            ["the loss is", "distill.lr_img"],
        ),
        (
            ("distill.outer=sgd", "distill.lr_img=100", "distill.lr_lr=1e3", "distill.lr_teacher=0.3"),
            ["student learning rate became", "distill.lr_lr"],
        ),
    ],
)
def test_divergence_stops_with_the_remedy(
    output: Path, tmp_path: Path, command: Command, overrides: tuple[str, ...], words: list[str]
) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output / "experts", folder / "experts")
    with pytest.raises(DistillationDiverged) as caught:
        command("distill", folder, "distill.max_steps=50", "distill.eval_every=50", *overrides)
    for word in ("iteration", *words):
        assert word in str(caught.value)
    assert not list(folder.rglob("result.json"))


def test_what_was_evaluated_before_a_divergence_stays(output: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "output"
    shutil.copytree(output / "experts", folder / "experts")
    diverging = ("distill.max_steps=50", "distill.eval_every=1", "distill.lr_img=1e30", "distill.outer=sgd")
    run = run_of(*SMALL, f"output_dir={folder}", *diverging)
    with pytest.raises(DistillationDiverged):
        command("distill", folder, *diverging)
    kept = load_distilled(run.synthetic_folder())
    assert bool(kept.images.isfinite().all())
    assert (run.distill_folder() / "checkpoints" / "last.ckpt").exists()
    with pytest.raises(DistillationDiverged):  # the same command goes on from there, and says the same
        command("distill", folder, *diverging)
    again = load_distilled(run.synthetic_folder())
    assert again.metadata["iteration"] == kept.metadata["iteration"]
    torch.testing.assert_close(again.images, kept.images, rtol=0, atol=0)


@pytest.mark.slow
def test_scripts_say_it_in_one_line_and_exit_with_status_2(tmp_path: Path, script: Script) -> None:
    result = script("distill", tmp_path / "output")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: experts_dir=")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "output").exists()
