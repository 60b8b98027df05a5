"""evaluate.py with several networks: one table, and the stored scores of each network as if it were evaluated alone."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from hydra.utils import get_class

from ast_lightning.commands import scores
from ast_lightning.commands.app import build_run
from ast_lightning.commands.evaluate import evaluate, evaluation_folder
from ast_lightning.commands.networks import architectures
from ast_lightning.commands.run import Run
from ast_lightning.config.check import checked
from ast_lightning.config.identity import experts_identity, short_hash
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import unseal
from ast_lightning.storage.files import read_json
from ast_lightning.synthetic import load_distilled, save_distilled
from ast_lightning.synthetic.interchange import export_published, import_published, read_likeness

from .conftest import ROOT, SMALL, Command, composed, run_of
from .test_commands import distilled_folder
from .test_resuming import with_experts

NARROW = "{_target_: ast_lightning.networks.ConvNet, width: 4, depth: 1, normalization: batch}"
FEW = ("evaluation.baseline_lr=same", "evaluation.epochs=2")
FILES = sorted(path.stem for path in (ROOT / "conf" / "network").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(output: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = with_experts(output, tmp_path_factory.mktemp("architectures"))
    command("distill", folder, "distill.max_steps=2")
    return folder


def record_of(run: Run) -> dict[str, Any]:
    return unseal(read_json(evaluation_folder(run) / "results.json"))


def test_one_row_for_each_architecture_with_the_baselines_beside_it(
    folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"architectures=[convnet,mlp,{NARROW}]", *FEW)
    metrics = command("evaluate", folder, *words)
    printed = capsys.readouterr().out
    narrow = "ConvNet(width=4, depth=1, normalization=batch)"
    scored = {name: ["random", "representative", "distilled"] for name in ("mlp", narrow)}
    scored["convnet"] = [*scored["mlp"], "whole"]  # the experts' network alone
    assert {key for key in metrics if key.endswith("_accuracy")} == {
        f"{name}/{each}_accuracy" for name, names in scored.items() for each in names
    }
    table = [line for line in printed.splitlines() if line.startswith(("│", "|"))]
    assert [line.split()[1] for line in table if line.split()[1] in ("convnet", "mlp")] == ["convnet", "mlp"]
    assert printed.count("results.json") == 3

    synthetic = f"synthetic={distilled_folder(folder) / 'synthetic' / 'last'}"
    others = [word for word in SMALL if not word.startswith("network.")]
    run = run_of(*others, f"output_dir={folder}", synthetic, "network=mlp", "baselines=[random]", *FEW)
    alone = evaluate(run)
    assert "already finished" in capsys.readouterr().out
    assert alone["distilled_accuracy"] == metrics["mlp/distilled_accuracy"]
    assert command("evaluate", folder, *FEW) == {
        key.partition("/")[2]: value for key, value in metrics.items() if key.startswith("convnet/")
    }
    capsys.readouterr()
    assert command("evaluate", folder, *words) == metrics
    assert "training " not in capsys.readouterr().out
    # the experts, whose network is another, select the same representative images for all
    of_mlp, of_convnet = record_of(run), record_of(run_of(*SMALL, f"output_dir={folder}", *FEW))
    assert of_mlp["inputs"]["representative"] == of_convnet["inputs"]["representative"]


def test_an_interrupted_comparison_goes_on_with_the_next_score(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, trained, train = ("architectures=[convnet,mlp]", *FEW, "baselines=[random]", "seed=0"), [], scores.train

    def interrupted(evaluation: Any, name: str, sets: Any) -> Any:
        trained.append((evaluation.label, name))
        if trained == [("convnet", "random"), ("convnet", "distilled"), ("mlp", "random"), ("mlp", "distilled")]:
            raise KeyboardInterrupt
        return train(evaluation, name, sets)

    monkeypatch.setattr(scores, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("evaluate", folder, *words, "evaluation.epochs=3")
    trained.clear()
    command("evaluate", folder, *words, "evaluation.epochs=3")
    assert trained == [("mlp", "distilled")]


def test_an_imported_set_and_soft_labels(folder: Path, command: Command, tmp_path: Path) -> None:
    last = distilled_folder(folder) / "synthetic" / "last"
    dataset = load_distilled(last)
    files = export_published(dataset, tmp_path, "best")
    save_distilled(tmp_path / "set", import_published(files[0], read_likeness(last)))
    words = (f"synthetic={tmp_path / 'set'}", "architectures=[convnet,mlp]", "baselines=[]", *FEW)
    hard = command("evaluate", folder, *words)
    labels = 0.9 * F.one_hot(dataset.labels, 10).float() + 0.01
    save_distilled(tmp_path / "soft", dataclasses.replace(dataset, labels=labels))
    soft = command("evaluate", folder, *words, f"synthetic={tmp_path / 'soft'}")
    assert set(soft) == set(hard)
    assert set(soft) >= {"convnet/distilled_accuracy", "mlp/distilled_accuracy"}


@pytest.mark.parametrize(
    ("entries", "option", "words"),
    [
        ("[convnet,alxnet]", "architectures[1]", "did you mean alexnet?"),
        ("[torchvision]", "architectures[0]", "it needs name"),
        ("[custom]", "architectures[0]", "it needs _target_"),
        ("[base_vgg]", "architectures[0]", "vgg11"),
        ("[{_target_: ast_lightning.networks.Torchvision, name: resnet81}]", "architectures[0].name", "resnet18"),
        ("[{_target_: ast_lightning.networks.VGG, layer: 11}]", "architectures[0].layer", "layers"),
        ("[{_target_: nowhere.Net}]", "architectures[0]._target_", "cannot be imported"),
        ("[convnet,vgg11]", "architectures", "32×32 pixels or more"),
        ("[mlp,convnet,convnet]", "architectures[2]", "give each network once"),
    ],
)
def test_what_cannot_be_compared_is_named(
    entries: str, option: str, words: str, folder: Path, command: Command
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        command("evaluate", folder, f"architectures={entries}")
    assert caught.value.option == option
    assert words in str(caught.value)


def test_an_entry_is_composed_without_the_overrides_of_the_run() -> None:
    run = run_of("experiment=digits_quickstart", "architectures=[convnet,vgg16]", "network=vgg11")
    found = {label: each.config["network"] for label, each in architectures(run).items()}
    assert found["vgg16"] == {"_target_": "ast_lightning.networks.VGG", "layers": 16, "normalization": "instance"}
    assert found["convnet"]["width"] == 128  # 32 in the experiment


def test_keys_of_a_network_are_its_arguments_and_every_file_is_another_run() -> None:
    given = {"custom": ["network._target_=my.Net"]} | {name: ["network.name=a"] for name in ("torchvision", "timm")}
    networks = {name: checked(composed(f"network={name}", *given.get(name, []))) for name in FILES}
    assert len({short_hash(experts_identity(config)) for config in networks.values()}) == len(FILES)
    for config in (config["network"] for name, config in networks.items() if name != "custom"):
        own = set(inspect.signature(get_class(config["_target_"])).parameters)
        assert set(config) == {"_target_", *own} - {"channels", "num_classes", "image_size"}


def test_an_experiment_sets_options_of_convnet_alone() -> None:
    assert run_of("experiment=fashion_mnist_demo", "network=resnet18").config["network"] == {
        "_target_": "ast_lightning.networks.ResNet18",
        "normalization": "instance",
        "downsampling": "stride",
        "stem": "small",
    }
    with pytest.raises(ConfigurationError, match=r"network\.width=3: the chosen network has no such option"):
        run_of("experiment=fashion_mnist_demo", "network=resnet18", "network.width=3")


def test_a_file_whose_class_was_replaced_means_the_network_of_the_file(tmp_path: Path) -> None:
    words = (f"output_dir={tmp_path}", "network._target_=ast_lightning.networks.MLP", "architectures=[convnet,mlp]")
    own = build_run(composed(*words), choices={"network": "convnet"})
    assert own.experts_folder().name.startswith("digits_MLP_")
    found = architectures(own)
    assert found["convnet"].config["network"]["_target_"] == "ast_lightning.networks.ConvNet"
    assert found["mlp"].config["network"]["_target_"] == "ast_lightning.networks.MLP"
