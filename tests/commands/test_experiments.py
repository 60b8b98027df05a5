"""Every published setting and every method: composed, equal to the published tables, and run on tiny data."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchvision import datasets

from ast_lightning.commands.app import build_run
from ast_lightning.commands.distill import distill
from ast_lightning.commands.evaluate import evaluate
from ast_lightning.commands.run import Run
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.distill import DistributionMatchingSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic import load_distilled

from .conftest import ROOT, composed, run_of
from .published import DATA, ROWS, published

pytestmark = pytest.mark.slow  # a hundred files are composed several times

FILES = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if path.stem[:4] != "base")
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
PRESETS = {  # method: expert, distillation, evaluation
    "ast": ("ast", "ast", "ast"),
    "mtt": ("mtt", "mtt", "mtt"),
    "ftd": ("ftd", "ftd", "mtt"),
    "tesla": ("mtt", "tesla", "tesla"),
    "datm": ("ftd", "datm", "datm"),
    "pad": ("pad", "pad", "datm"),
    "att": ("mtt", "att", "mtt"),
    "mct": ("mtt", "mct", "mtt"),
    "dm": ("ast", "distribution_matching", "mtt"),
}
CIFAR = [each for each in ROWS if "_cifar" in each]
OF_FILES = (  # one of each method and layout; the others differ in numbers
    *("ast_tiny_ipc1", "mtt_tiny_ipc10", "ftd_tiny_ipc1", "datm_tiny_ipc10", "pad_tiny_ipc1", "att_tiny_ipc10"),
    *("mtt_imagenette_ipc10", "ftd_imagewoof_ipc1", "att_imagemeow_ipc1", "mtt_imagesquawk_ipc1_texture"),
    "tesla_imagenet_ipc1",
)
UNTUNED = {"outer": "normalized", "schedule": "inverse_sqrt", "alpha": "log", "lr_img": 0.2, "lr_lr": 0.001}


@functools.cache
def experiment_config(experiment: str) -> DictConfig:
    """Composed once, because that takes longer than a tiny run."""
    return composed(f"experiment={experiment}")


def run_with(experiment: str, *options: str) -> Run:
    """The run of an experiment with other values of options."""
    config = copy.deepcopy(experiment_config(experiment))
    for option, _, value in (word.partition("=") for word in options):
        OmegaConf.update(config, option, yaml.safe_load(value))
    return build_run(config, choices={})


def test_the_tables_cover_all_published_experiments() -> None:
    assert sorted(ROWS) == [each for each in FILES if "_ipc" in each]


def options_in(experiment: str) -> set[str]:
    """The options that the file of an experiment, or a file that it extends, sets."""
    values = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    extended = [each for each in values.pop("defaults", []) if isinstance(each, str) and each != "_self_"]
    own = set()
    for key, value in values.items():
        own |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    return own.union(*map(options_in, extended))


@pytest.mark.parametrize("experiment", ROWS)
def test_experiments_set_nothing_that_the_tables_lack(experiment: str) -> None:
    others = {"distill.perturbation", "distill.intermediate"} if experiment == "ast_cifar100_ipc50" else set()
    assert options_in(experiment) - set(published(experiment)) == others


@pytest.mark.parametrize("experiment", ROWS)
def test_published_settings(experiment: str) -> None:
    """They equal the tables, and the windows fit the trajectories."""
    run = run_with(experiment)
    found = {}
    for option in published(experiment):
        section, _, name = option.rpartition(".")
        found[option] = run.config[section][name] if section else run.config[name]
    assert found == published(experiment)
    if run.distill.needs_experts:
        assert run.distill.max_start_epoch + run.distill.expert_epochs - 1 <= run.expert.epochs


def test_cifar100_at_fifty_images_has_neither_perturbation_nor_intermediate_matching_in_ast() -> None:
    for experiment, expected in (("ast_cifar100_ipc50", (0, "none")), ("ast_cifar100_ipc10", (1, "aggregate"))):
        settings = run_of(f"experiment={experiment}").distill
        assert (settings.perturbation, settings.intermediate) == expected


@pytest.mark.parametrize("experiment", ["digits_quickstart", *(each for each in ROWS if each.startswith("ast"))])
def test_one_word_makes_an_experiment_of_ast_mtt(experiment: str) -> None:
    run = run_of(f"experiment={experiment}")
    plain = run_of(f"experiment={experiment}", "distill=mtt").distill
    assert (plain.init, plain.momentum, plain.balance, plain.perturbation) == ("real", 0, False, 0)
    assert (plain.intermediate, plain.syn_steps) == ("none", run.distill.syn_steps)


def test_a_method_replaces_the_parts_of_an_experiment_and_keeps_its_numbers() -> None:
    run = run_of("experiment=mtt_cifar10_ipc10", "method=att")
    assert (run.distill.matching, run.distill.lr_teacher, run.distill.max_start_epoch) == ("nearest", 0.001, 20)
    run = run_of("experiment=datm_cifar10_ipc10", "method=pad")
    assert (run.distill.drop_ratio, run.expert.samples, run.distill.lr_labels) == (0.5, "curriculum", 2)
    run = run_of("experiment=datm_cifar10_ipc10", "expert=mtt")
    assert (run.expert.optimizer, run.expert.epochs, run.distill.labels) == ("sgd", 100, "soft")


@pytest.mark.parametrize(
    ("words", "option", "remedy"),
    [
        (("experiment=datm_cifar10_ipc10", "method=mtt"), "distill.lr_labels", "distill.labels=soft"),
        (("experiment=ftd_cifar10_ipc50", "expert=mtt"), "expert.sam_alpha", "expert.optimizer=gsam"),
        (("experiment=mtt_cifar10_ipc10", "method=dm"), "distill.alpha", "another file"),
        (("method=tesla", "distill.momentum=0.9"), "distill.engine", "distill.engine=adjoint"),
        (("method=att", "distill.intermediate=aggregate"), "distill.matching", "distill.intermediate=none"),
    ],
)
def test_what_cannot_be_combined_is_rejected(words: tuple[str, ...], option: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_of(*words)
    assert caught.value.option == option
    assert remedy in caught.value.remedy


def test_every_method_has_a_preset() -> None:
    assert sorted(PRESETS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_alone_is_complete_and_keeps_the_untuned_step(method: str) -> None:
    """The same as its three groups; nothing in it depends on the number of iterations."""
    expert, distilled, evaluation = PRESETS[method]
    run = run_of(f"method={method}")
    assert run.config == run_of(f"expert={expert}", f"distill={distilled}", f"evaluation={evaluation}").config
    assert run.distill.ema is None
    if isinstance(run.distill, DistributionMatchingSettings):
        return
    assert {name: getattr(run.distill, name) for name in UNTUNED} == UNTUNED
    assert run.distill.momentum == (0.9 if method == "ast" else 0)
    assert (run.distill.max_loss, run.distill.first_start_bound, run.distill.min_start_epoch) == (None, None, 0)


def write_cifar(root: Path, dataset_class: type, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of CIFAR with two images per class in all training files together, and in the test file."""
    folder, key = root / dataset_class.base_folder, "labels" if classes == 10 else "fine_labels"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for names in (dataset_class.train_list, dataset_class.test_list):
        labels = np.tile(np.arange(classes), 2)
        images = random.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        for (name, _), part in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            (folder / name).write_bytes(pickle.dumps({"data": images[part], key: labels[part].tolist()}))
    names = [f"thing {index}" for index in range(classes)]
    (folder / dataset_class.meta["filename"]).write_bytes(pickle.dumps({dataset_class.meta["key"]: names}))
    for attribute in ("train_list", "test_list"):  # no checksums to compare with
        monkeypatch.setattr(dataset_class, attribute, [[name, None] for name, _ in getattr(dataset_class, attribute)])
    monkeypatch.setattr(dataset_class, "meta", {**dataset_class.meta, "md5": None})


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of both CIFAR datasets, two images per class."""
    root = tmp_path_factory.mktemp("cifar") / "data"
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_cifar(root, datasets.CIFAR10, 10, monkeypatch)
        write_cifar(root, datasets.CIFAR100, 100, monkeypatch)
        yield root


TINY = (
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "compile=false", "num_experts=1", "baselines=[]"),
    *("network.width=2", "network.depth=1", "expert.epochs=1", "distill.ipc=1", "distill.max_steps=1"),
    *("evaluation.epochs=1", "evaluation.networks=1"),
)
WINDOWS = ("distill.syn_steps=2", "distill.expert_epochs=1", "distill.max_start_epoch=1", "distill.batch_syn=null")
WINDOWS += ("distill.lr_lr=1e-9",)  # two steps are too few for a published rate
GROWING = ("distill.min_start_epoch=0", "distill.first_start_bound=null", "distill.expansion_end=null")


def run_once(experiment: str, root: Path, *words: str) -> Run:
    """One expert epoch, one iteration, one evaluation; experts are shared by the experiments that have the same."""
    words = (*TINY, "logger={}", f"data.root={root}", f"output_dir={root.parent / 'runs'}", *words)
    words += ("distill.real_batch=2",) if experiment.startswith("dm") else (*WINDOWS, *GROWING)
    if experiment.startswith(("datm", "pad")):
        words += ("distill.init=real",)  # after one epoch on noise, no image is classified correctly
    words += ("distill.waypoints=1",) if experiment.startswith("mct") else ()  # one epoch is one piece
    run = run_with(experiment, *words)
    if run.distill.needs_experts and not (run.experts_folder() / "store.json").exists():
        train_experts(run)
        run = run_with(experiment, *words)
    metrics = distill(run)
    assert 0 <= metrics["test_accuracy"] <= 100
    dataset = load_distilled(run.synthetic_folder())
    assert dataset.metadata["iteration"] == 1
    assert dataset.labels.is_floating_point() == (run.config["distill"].get("labels", "hard") != "hard")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("experiment", CIFAR)
def test_every_published_experiment_of_cifar_runs(experiment: str, cifar: Path) -> None:
    run_once(experiment, cifar, "data.image_size=8", "expert.batch_size=200", "evaluation.batch_size=200")


def write_jpeg(path: Path, width: int, height: int) -> None:
    """Random pixels; the colours of a file follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive with three classes, of three training images and one validation image each."""
    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    lines = []
    for place, wnid in enumerate(("n02124075", "n04067472", "n04540053")):
        for index in range(3):
            write_jpeg(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 64, 64)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        write_jpeg(root / "val" / "images" / f"val_{place}.JPEG", 64, 64)
        lines.append(f"val_{place}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of ImageNet with the classes of four subsets, each with four training images and one other."""
    root = tmp_path_factory.mktemp("imagenet") / "imagenet"
    for subset in ("imagenette", "imagewoof", "imagemeow", "imagesquawk"):
        for wnid in yaml.safe_load((ROOT / "conf" / "data" / f"{subset}.yaml").read_text())["classes"]:
            for index in range(4):  # as many as tile a canvas
                write_jpeg(root / "train" / wnid / f"{wnid}_{index}.JPEG", 50, 40)
            write_jpeg(root / "val" / wnid / f"ILSVRC2012_val_{wnid[1:]}.JPEG", 40, 50)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("experiment", OF_FILES)
def test_a_published_experiment_of_image_files_runs(experiment: str, tiny_imagenet: Path, imagenet: Path) -> None:
    """The network has its published depth, and the images are the smallest for it."""
    depth = DATA[experiment.split("_")[1]]["network.depth"]
    words = (
        f"network.depth={depth}",
        f"data.image_size={2**depth}",
        "expert.batch_size=40",
        "evaluation.batch_size=40",
    )
    run = run_once(experiment, tiny_imagenet if "_tiny_" in experiment else imagenet, *words)
    dataset = load_distilled(run.synthetic_folder())
    classes = {"tiny": 3, "imagenet": 40}.get(experiment.split("_")[1], 10)
    side = 2**depth * (2 if experiment.endswith("texture") else 1)
    assert dataset.images.shape == (classes, 3, side, side)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs on digits."""
    return tmp_path_factory.mktemp("digits")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_the_digits(method: str, digits: Path) -> None:
    """``method=NAME`` is the only word that differs."""
    words = ["experiment=digits_quickstart", "logger=none", *TINY, "num_experts=2", "data.per_class=20"]
    words += ["network.width=8", "expert.epochs=3", "expert.batch_size=10", "expert.lr=0.05"]
    words += ["distill.max_steps=3", f"output_dir={digits}"]
    train_experts(run_of(*words, f"method={method}"))
    distill(run_of(*words, f"method={method}"))
    assert evaluate(run_of(*words, f"method={method}"))["distilled_accuracy"] > 0
