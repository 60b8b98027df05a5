"""``buffers=DIR``: files that others wrote become experts, are distilled, and are found again by the same words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.torch_files import fingerprint
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.interchange import export_buffers

from .conftest import ROOT, SMALL, Command, Script, run_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trajectories of the small setting in the published form, written by hand with torch alone."""
    folder = tmp_path_factory.mktemp("buffers")
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    sizes = [torch.Size(shape).numel() for _, shape in store.layout]
    for number, expert in ((2, 0), (10, 1)):
        timestamps = []
        for epoch in range(5):
            pieces = store.read_snapshot(expert, epoch).split(sizes)
            timestamps.append([p.clone().view(shape) for p, (_, shape) in zip(pieces, store.layout, strict=True)])
        torch.save([timestamps], folder / f"replay_buffer_{number}.pt")
    return folder


def store_of(folder: Path, *overrides: str) -> TrajectoryStore:
    return TrajectoryStore.open(run_of(*SMALL, f"output_dir={folder}", *overrides).experts_folder())


def test_import_distil_and_evaluate_with_the_same_words(
    output: Path, files: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"buffers={files}"
    trained = command("train_experts", output)
    capsys.readouterr()
    metrics = command("train_experts", tmp_path, words)
    said = capsys.readouterr().out
    assert "expert 1 is replay_buffer_10.pt, trajectory 0" in said
    assert metrics["test_accuracy"] == pytest.approx(trained["test_accuracy"])
    assert metrics["movement"] == pytest.approx(trained["movement"], rel=1e-5)
    imported, original = store_of(tmp_path, words), store_of(output)
    assert imported.experts() == [0, 1]
    for expert in (0, 1):
        assert torch.equal(imported.read_window(expert, 0, 4), original.read_window(expert, 0, 4))

    times = {path: path.stat().st_mtime_ns for path in imported.folder.rglob("*")}
    assert command("train_experts", tmp_path, words) == metrics
    assert "2 experts are imported already" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in imported.folder.rglob("*")}

    distilled = command("distill", tmp_path, words)
    assert distilled == command("distill", output)  # the same trajectories give the same images
    run = run_of(*SMALL, f"output_dir={tmp_path}", words)
    mine = load_distilled(run.synthetic_folder())
    theirs = load_distilled(run_of(*SMALL, f"output_dir={output}").synthetic_folder())
    assert mine.checksum() == theirs.checksum()
    assert mine.metadata["trajectories"]["expert"] == {
        "buffers": str(files.resolve()),
        "epochs": 4,
        "snapshot_dtype": "float32",
        "every_n_epochs": 1,
        "max_epoch": None,
    }
    sources = mine.metadata["trajectories"]["sources"]
    assert [(expert, each["file"]) for expert, each in sources.items()] == [
        ("0", "replay_buffer_2.pt"),
        ("1", "replay_buffer_10.pt"),
    ]
    assert sources["1"]["checksum"] == fingerprint(files / "replay_buffer_10.pt")
    scores = command("evaluate", tmp_path, words)
    assert scores["whole_accuracy"] == pytest.approx(trained["test_accuracy"])


def test_imported_trajectories_are_thinned_like_others(
    output: Path, files: Path, tmp_path: Path, command: Command
) -> None:
    words = (f"buffers={files}", "expert.snapshot_dtype=bfloat16", "expert.every_n_epochs=2", "distill.expert_epochs=2")
    command("train_experts", tmp_path, *words)
    thinned, original = store_of(tmp_path, *words), store_of(output)
    assert thinned.schedule.stored() == [0, 2, 4]
    for epoch in (0, 2, 4):
        assert torch.equal(thinned.read_snapshot(1, epoch), original.read_snapshot(1, epoch).bfloat16().float())
    assert command("distill", tmp_path, *words)
    with pytest.raises(ConfigurationError, match=r"does not hold every epoch.*every_n_epochs=1"):
        export_buffers(thinned, tmp_path / "out")


def test_beginning_an_import_anew_moves_it_aside(
    files: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"buffers={files}", "expert_index=0")
    command("train_experts", tmp_path, *words)
    command("train_experts", tmp_path, *words, "fresh=true")
    assert "earlier/expert_0000_1" in capsys.readouterr().out
    store = store_of(tmp_path, *words)
    assert store.experts() == [0]
    assert (store.folder / "earlier" / "expert_0000_1" / "expert.json").exists()


def test_what_a_result_records(output: Path, command: Command) -> None:
    command("distill", output)
    run, store = run_of(*SMALL, f"output_dir={output}"), store_of(output)
    metadata = load_distilled(run.synthetic_folder()).metadata
    origin = metadata["trajectories"]
    assert origin["id"] == store.id
    assert origin["experts"] == [0, 1]
    assert origin["sources"] == {}
    assert origin["expert"] == store.metadata["expert"]
    assert (origin["seed"], origin["epochs"]) == (0, 4)
    assert origin["data"]["fingerprint"] == metadata["data"]["fingerprint"] == run.data.fingerprint
    for record in (metadata, origin, store.metadata):
        assert record["versions"]["torch"] == torch.__version__
        assert {"git", "command", "time"} <= set(record)
    assert metadata["config"]["distill"]["syn_steps"] == 4
    assert metadata["seed"] == 0
    command("evaluate", output, "baselines=[]", "evaluation.epochs=2")
    for results in (output / "evaluations").glob("*/results.json"):
        record = json.loads(results.read_text())
        if record["config"]["evaluation"]["epochs"] == 2:
            assert record["set"]["trajectories"] == origin["id"]
            assert record["set"]["checksum"] == load_distilled(run.synthetic_folder()).checksum()
            assert {"versions", "git", "command", "time", "seed"} <= set(record)


def test_a_warm_start_is_an_ancestor(output: Path, command: Command) -> None:
    command("distill", output)
    earlier = run_of(*SMALL, f"output_dir={output}").synthetic_folder()
    words = (f"distill.warm_start={earlier}", "distill.max_steps=1")
    command("distill", output, *words)
    metadata = load_distilled(run_of(*SMALL, f"output_dir={output}", *words).synthetic_folder()).metadata
    assert metadata["warm_start"]["checksum"] == load_distilled(earlier).checksum()
    assert metadata["warm_start"]["iteration"] == 4


@pytest.mark.parametrize(
    ("overrides", "option", "words"),
    [
        (["num_experts=3"], "num_experts", ["hold only 2 trajectories", "num_experts=2"]),
        (["expert_index=2"], "expert_index", ["hold only 2 trajectories"]),
        (["expert.epochs=3"], "expert.epochs", ["have 4 epochs", "set expert.epochs=4"]),
        (["network.width=4"], "buffers", ["replay_buffer_2.pt, trajectory 0: epoch 0, tensor 0", "network.width"]),
        (["network.depth=2"], "buffers", ["replay_buffer_2.pt", "network.depth"]),
        (["network.normalization=none"], "buffers", ["network.normalization"]),
        (["data.image_size=16"], "buffers", ["data.image_size", "network.pooling"]),
        (["buffers=nowhere"], "buffers", ["there is no such folder"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    files: Path, tmp_path: Path, command: Command, overrides: list[str], option: str, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        command("train_experts", tmp_path / "output", f"buffers={files}", *overrides)
    assert str(caught.value).startswith(f"{option}=")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "output").exists()


def test_fast_dev_run_looks_and_writes_nothing(files: Path, tmp_path: Path, command: Command) -> None:
    assert command("train_experts", tmp_path / "output", f"buffers={files}", "trainer.fast_dev_run=true") == {}
    assert not (tmp_path / "output").exists()


def test_more_experts_later_and_one_by_itself(files: Path, tmp_path: Path, command: Command) -> None:
    command("train_experts", tmp_path, f"buffers={files}", "expert_index=1")
    assert store_of(tmp_path, f"buffers={files}").experts() == [1]
    command("train_experts", tmp_path, f"buffers={files}")
    assert store_of(tmp_path, f"buffers={files}").experts() == [0, 1]


def test_files_that_changed_after_the_import_are_named(files: Path, tmp_path: Path, command: Command) -> None:
    changing = Path(shutil.copytree(files, tmp_path / "files"))
    words = f"buffers={changing}"
    metrics = command("train_experts", tmp_path, words)
    (changing / "replay_buffer_2.pt").unlink()  # one that is gone is not needed any more
    assert command("train_experts", tmp_path, words) == metrics
    shutil.copy(files / "replay_buffer_2.pt", changing / "replay_buffer_10.pt")
    with pytest.raises(ConfigurationError, match=r"expert 1 was imported from replay_buffer_10\.pt.*checksum"):
        command("train_experts", tmp_path, words)


def test_pieces_of_a_killed_import_go(files: Path, tmp_path: Path, command: Command) -> None:
    words = (f"buffers={files}", "expert_index=0")
    command("train_experts", tmp_path, *words)
    expert = store_of(tmp_path, *words).expert_folder(0)
    (expert / "expert.json").unlink()
    (expert / ".epoch_0003.safetensors.abc.partial").write_bytes(b"a piece")
    command("train_experts", tmp_path, *words)
    assert not list(expert.glob(".*"))


def test_networks_that_only_guess_are_suspicious(
    files: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    (content,) = torch.load(files / "replay_buffer_2.pt", weights_only=True)
    torch.save([[[-tensor for tensor in tensors] for tensors in content]], tmp_path / "files" / "replay_buffer_0.pt")
    command("train_experts", tmp_path, f"buffers={tmp_path / 'files'}", "num_experts=1")
    assert "warning: guessing gives 10.0 %: were these experts trained on data=digits" in capsys.readouterr().out


def test_a_hostile_file_is_refused_by_the_script(files: Path, tmp_path: Path, command: Command) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sentinel"),)

    shutil.copytree(files, tmp_path / "files")
    torch.save([[[Hostile()]]], tmp_path / "files" / "replay_buffer_3.pt")
    with pytest.raises(ConfigurationError, match=r"buffers=.*replay_buffer_3\.pt: .* it holds a pickled posix\.mkdir"):
        command("train_experts", tmp_path / "output", f"buffers={tmp_path / 'files'}")
    assert not (tmp_path / "sentinel").exists()
    assert not (tmp_path / "output").exists()


def test_imported_experts_are_told_from_trained_ones_and_serve_every_seed(files: Path) -> None:
    def folders(*overrides: str) -> tuple[str, str]:
        run = run_of(*SMALL, *overrides)
        return run.experts_folder().name, run.distill_folder().name

    words, whole = f"buffers={files}", "data.per_class=null"
    experts, distilled = folders(words, whole)
    assert experts.startswith("digits_convnet_imported_")
    assert experts != folders(whole)[0]
    assert distilled != folders(whole)[1]
    assert folders(f"buffers={files}/../{files.name}", whole) == (experts, distilled)
    for same_experts in ("seed=1", "data.augmentation=color", "trainer.precision=bf16-mixed"):
        assert folders(words, whole, same_experts)[0] == experts
        assert folders(words, whole, same_experts)[1] != distilled
    assert folders(words, whole, "expert.lr=0.5")[0] == experts
    for others in ("data.preprocessing=zca", "expert.epochs=5", "network.width=4", "buffers=elsewhere"):
        assert folders(words, whole, others)[0] != experts
        assert folders(words, whole, others)[1] != distilled
    assert folders(words, "seed=1")[0] != folders(words)[0]  # the seed chooses the images of a subset


def test_the_readme_names_the_folder_of_the_quickstart() -> None:
    run = run_of("experiment=digits_quickstart")
    assert f"{run.distill_folder()}/" in (ROOT / "README.md").read_text()
    assert run.experts_folder().name.startswith("digits_convnet_ast_seed0_")


def test_the_scripts_import_and_distil(output: Path, tmp_path: Path, script: Script) -> None:
    files = tmp_path / "files"
    export_buffers(store_of(output), files, per_file=10)
    for name in ("train_experts", "distill"):
        result = script(name, tmp_path / "output", f"buffers={files}")
        assert result.returncode == 0, result.stderr
    result = script("train_experts", tmp_path / "output", f"buffers={files}", "num_experts=5")
    assert result.returncode == 2
    assert "set num_experts=2" in result.stderr


def test_the_padding_of_the_published_codes_is_found_out(tmp_path: Path, command: Command) -> None:
    """One channel of 8×8: both paddings give parameters of the same shapes."""
    trained = ("network.first_padding=3", "expert.epochs=8", "network.depth=3")
    command("train_experts", tmp_path / "theirs", *trained)
    export_buffers(store_of(tmp_path / "theirs", *trained), tmp_path / "buffers")
    words = (f"buffers={tmp_path / 'buffers'}", "expert.epochs=8", "network.depth=3")
    with pytest.raises(ConfigurationError, match=r"network\.first_padding=null: .*set network\.first_padding=3"):
        command("train_experts", tmp_path / "ours", *words)
    assert not (tmp_path / "ours").exists()
    command("train_experts", tmp_path / "ours", *words, "network.first_padding=3")
