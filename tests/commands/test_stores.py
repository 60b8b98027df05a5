"""The commands on stores that are thinned, damaged, half done or too large for the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from ast_lightning.commands.distill import distill
from ast_lightning.commands.stores import expert_results, experts_in_use
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError
from ast_lightning.evaluation.baselines import whole_score
from ast_lightning.storage.files import read_json, write_json
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.__main__ import main

from .conftest import SMALL, Command, run_of

THIN = ("expert.every_n_epochs=2", "expert.snapshot_dtype=bfloat16", "distill.max_start_epoch=3")


@pytest.fixture
def experts(output: Path, tmp_path: Path) -> Path:
    """A copy of the trajectories of the small setting, to be spoiled."""
    source = run_of(*SMALL, f"output_dir={output}").experts_folder()
    return Path(shutil.copytree(source, tmp_path / "experts" / source.name))


def distilling(experts: Path, tmp_path: Path) -> None:
    distill(run_of(*SMALL, f"output_dir={tmp_path / 'output'}", f"experts_dir={experts}"))


def test_distillation_from_every_second_epoch_in_sixteen_bits(
    output: Path, tmp_path: Path, command: Command, window_readers: Callable[[], list[str]]
) -> None:
    command("train_experts", tmp_path, *THIN)
    run = run_of(*SMALL, f"output_dir={tmp_path}", *THIN)
    store = TrajectoryStore.open(run.experts_folder())
    whole = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    assert store.schedule.stored() == [0, 2, 4]
    for expert in (0, 1):
        wanted = whole.read_window(expert, 0, 4)[::2]
        assert torch.equal(store.read_window(expert, 0, 4), wanted.to(torch.bfloat16).float())
    metrics = command("distill", tmp_path, *THIN)
    assert 0 <= metrics["test_accuracy"] <= 100
    assert read_json(run.distill_folder() / "result.json")["iteration"] == 4
    assert window_readers() == []
    assert main(["verify", str(tmp_path / "experts")]) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expert_0001/epoch_0002.safetensors", "epoch_0002.safetensors cannot be used"),
        ("expert_0000/expert.json", "expert.json cannot be used"),
        ("preprocessing.safetensors", "preprocessing.safetensors cannot be used"),
        ("store.json", "store.json cannot be used"),
    ],
)
def test_distillation_refuses_a_damaged_file_by_its_name(
    experts: Path, tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = experts / name
    content = bytearray(path.read_bytes())
    content[-5 if name.endswith("s") else len(content) // 2] ^= 2
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        distilling(experts, tmp_path)
    assert str(experts / name) in str(caught.value)
    assert words in str(caught.value)
    capsys.readouterr()
    assert main(["verify", str(experts.parent)]) == 1
    assert f"{path}: " in capsys.readouterr().out


def test_a_missing_snapshot_is_found_at_the_start_of_each_command(experts: Path, tmp_path: Path) -> None:
    (experts / "expert_0000" / "epoch_0001.safetensors").unlink()
    for command in (
        lambda: distilling(experts, tmp_path),
        lambda: train_experts(run_of(*SMALL, f"experts_dir={experts}")),
    ):
        with pytest.raises(
            ConfigurationError, match=r"epoch_0001\.safetensors is missing.*delete .*expert_0000 and run"
        ):
            command()


def test_distillation_refuses_a_store_that_lost_its_preprocessing(experts: Path, tmp_path: Path) -> None:
    (experts / "preprocessing.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"preprocessing\.safetensors is missing.*delete both"):
        distilling(experts, tmp_path)


def test_the_remedy_for_damaged_records_of_a_store_works(experts: Path, tmp_path: Path) -> None:
    """Delete store.json and the preprocessing, train again: both are written anew, and no expert is trained."""
    before = (experts / "expert_0000" / "expert.json").stat().st_mtime_ns
    record = read_json(experts / "store.json")
    for name in ("store.json", "preprocessing.safetensors"):
        (experts / name).unlink()
    train_experts(run_of(*SMALL, f"experts_dir={experts}"))
    assert read_json(experts / "store.json")["id"] == record["id"]
    assert (experts / "expert_0000" / "expert.json").stat().st_mtime_ns == before
    assert main(["verify", str(experts)]) == 0
    distilling(experts, tmp_path)


def test_incomplete_experts_are_left_out_with_a_word(
    experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (experts / "expert_0000" / "expert.json").unlink()
    distilling(experts, tmp_path)
    text = capsys.readouterr().out
    assert "1 incomplete expert in" in text
    assert "the first is expert 0" in text
    assert "from 1 expert in" in text


def test_a_gap_is_harmless(experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(experts / "expert_0000")
    distilling(experts, tmp_path)
    text = capsys.readouterr().out
    assert "incomplete" not in text
    assert "from 1 expert in" in text


def test_training_that_the_disk_cannot_hold_is_refused_before_it_begins(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ConfigurationError, match=r"output_dir=.* still to be written, .* 1000 B free.*every_n_epochs"):
        command("train_experts", tmp_path)
    assert not list(tmp_path.rglob("epoch_*"))


def test_nothing_is_asked_of_the_disk_where_nothing_is_to_be_written(
    output: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert command("train_experts", output)["test_accuracy"] > 0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of noise."""
    for split, count in (("train", 6), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(10 * index + ord(name)))
                save_image(noise, tmp_path / "pictures" / split / name / f"{index}.png")
    return tmp_path / "pictures"


def words(folder: Path) -> tuple[str, ...]:
    options = ("data.per_class=null", "data.preprocessing=none", "distill.outer=sgd", "distill.lr_img=1")
    return ("data=image_folder", "data.image_size=8", f"data.root={folder}", *options)


def test_images_that_changed_in_place(
    pictures: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("train_experts", tmp_path, *words(pictures))
    command("distill", tmp_path, *words(pictures))
    dataset = run_of(*SMALL, f"output_dir={tmp_path}", *words(pictures)).synthetic_folder()
    shutil.copy(pictures / "train" / "a" / "0.png", pictures / "train" / "a" / "new.png")
    for name in ("train_experts", "distill"):  # which had finished
        with pytest.raises(ConfigurationError, match=r"counts\.train = 12, .* 13.*fresh=true"):
            command(name, tmp_path, *words(pictures))
    capsys.readouterr()
    command("evaluate", tmp_path, *words(pictures), "baselines=[random]")
    assert "have changed since" in capsys.readouterr().out
    command("evaluate", tmp_path, *words(pictures), "baselines=[]", f"synthetic={dataset}", "data.eval_batch_size=7")
    assert "have changed since" in capsys.readouterr().out
    command("evaluate", tmp_path, *words(pictures), "baselines=[]", f"synthetic={dataset}", "data.per_class=5")
    assert "have changed since" not in capsys.readouterr().out
    command("train_experts", tmp_path, *words(pictures), "fresh=true")
    assert len(list((tmp_path / "experts" / "earlier").iterdir())) == 1
    with pytest.raises(ConfigurationError, match=r"fresh=true"):
        command("distill", tmp_path, *words(pictures))
    command("distill", tmp_path, *words(pictures), "fresh=true")
    command("evaluate", tmp_path, *words(pictures), "baselines=[random]")
    assert "have changed since" not in capsys.readouterr().out
    assert dataset.is_dir()


def test_a_renamed_folder_of_images_finds_its_experts(pictures: Path, tmp_path: Path, command: Command) -> None:
    command("train_experts", tmp_path, *words(pictures))
    command("train_experts", tmp_path, *words(pictures), "seed=1", "expert.lr=0.02")
    renamed = pictures.rename(tmp_path / "renamed")
    with pytest.raises(ConfigurationError) as caught:
        command("distill", tmp_path, *words(renamed))
    assert "2 stores" in caught.value.problem
    assert f"data.root={pictures} (here {renamed})" in caught.value.problem
    assert "seed=" not in caught.value.problem
    option = next(word for word in caught.value.remedy.split() if word.startswith("experts_dir="))
    command("distill", tmp_path, *words(renamed), option)
    with pytest.raises(ConfigurationError, match=r"^data\.root=.*pictures: there is no such folder"):
        command("distill", tmp_path, *words(pictures), "expert.lr=0.05")
    renamed.rename(pictures)
    with pytest.raises(ConfigurationError) as caught:
        command("distill", tmp_path, *words(pictures), "expert.lr=0.05")
    assert "has expert.lr=" in caught.value.problem
    assert "experts_dir=" not in caught.value.remedy


def test_names_of_folders_name_own_parts(tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        return run_of(f"output_dir={tmp_path}", *overrides).experts_folder().name

    own = ("network=custom", "network._target_=tests.networks.own.Own")
    assert name().startswith("digits_convnet_ast_seed0_")
    assert name(*own, "data.name=my flowers").startswith("my-flowers_Own_ast_seed0_")
    assert name("network._target_=ast_lightning.networks.MLP").startswith("digits_MLP_ast_seed0_")
    earlier = tmp_path / "experts" / name(*own).replace("_Own_", "_custom_")
    earlier.mkdir(parents=True)  # as an earlier version called it
    write_json(earlier / "store.json", {"config": run_of(f"output_dir={tmp_path}", *own).config})
    assert name(*own) == earlier.name


@pytest.mark.parametrize("network", ["OneMore", "Pair", "Counter", "Fails", "CannotBeBuilt"])
def test_a_network_that_does_not_fit_leaves_nothing_behind(network: str, tmp_path: Path) -> None:
    run = run_of(f"output_dir={tmp_path}", "network=custom", f"network._target_=tests.networks.own.{network}")
    with pytest.raises(ConfigurationError, match=f"network=tests.networks.own.{network}: "):
        train_experts(run)
    assert not list(tmp_path.iterdir())


def test_a_last_batch_of_one_image_that_a_network_cannot_take(tmp_path: Path) -> None:
    own = ("network=custom", "network._target_=tests.networks.own.NormalizedLogits", "data.per_class=20")
    with pytest.raises(ConfigurationError, match=r"network=.*another batch size"):
        train_experts(run_of(f"output_dir={tmp_path}", *own, "expert.batch_size=199"))
    with pytest.raises(ConfigurationError, match=r"network=.*another batch size"):
        train_experts(run_of(f"output_dir={tmp_path}", *own, "expert.batch_size=1"))
    part = ("expert.samples=curriculum", "expert.batch_size=179")  # 200 images, and 180 in the later epochs
    with pytest.raises(ConfigurationError, match=r"network=.*another batch size"):
        train_experts(run_of(f"output_dir={tmp_path}", *own, *part, "expert.epochs=10"))
    assert not list(tmp_path.iterdir())


def test_a_matching_at_steps_that_do_not_exist_is_named(experts: Path, tmp_path: Path) -> None:
    own = "distill.matching={_target_: tests.experts.parts.Impossible, _partial_: true}"
    with pytest.raises(ConfigurationError, match=r"^distill\.matching=.*match_at is \[5\].* 1 … 4"):
        distill(run_of(*SMALL, f"output_dir={tmp_path / 'output'}", f"experts_dir={experts}", own))


def test_experts_in_use_are_those_of_the_run(experts: Path, tmp_path: Path) -> None:
    store = TrajectoryStore.open(experts)
    assert experts_in_use(store, run_of(*SMALL, f"output_dir={tmp_path}", "num_experts=1")) == [0]
    assert experts_in_use(store, run_of(*SMALL, f"experts_dir={experts}", "num_experts=1")) == [0, 1]


def test_an_expert_that_never_moves_is_named(experts: Path, tmp_path: Path) -> None:
    store = TrajectoryStore.open(experts)
    store.finish(1, {"history": [{"trajectory/movement": 0.0}] * 4})
    with pytest.raises(ConfigurationError, match=r"experts_dir=.*expert 1 never change.*expert\.lr"):
        distilling(experts, tmp_path)


def test_experts_that_record_no_accuracy_are_complete(experts: Path) -> None:
    """Those of a script may come without: results that all have are printed, and the whole baseline is left out."""
    store = TrajectoryStore.open(experts)
    store.finish(0, {})
    assert expert_results(store, [0]) == {}
    assert set(expert_results(store, [1])) == {"test_accuracy", "movement", "cross_entropy"}
    with pytest.raises(ConfigurationError, match=r"^baselines=whole: .*leave whole out"):
        whole_score(store, [0, 1])
