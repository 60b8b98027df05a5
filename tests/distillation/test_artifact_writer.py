"""The distilled dataset on disk while distillation goes on: which steps are kept, and what last and best mean."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ast_lightning.callbacks import ArtifactWriter, StateOfIterations
from ast_lightning.data import NoPreprocessing
from ast_lightning.distillation import DistillModule
from ast_lightning.synthetic import DistilledDataset, load_distilled

Make = Callable[..., Any]
NAMES = ("ant", "bee", "cat")


def make_dataset(module: DistillModule, found: dict[str, Any]) -> DistilledDataset:
    images, labels, rate, _ = module.training_set()
    return DistilledDataset(images.clone(), labels.clone(), rate, NoPreprocessing(), NAMES, None, found)


def evaluated(step: int, rank_zero: bool = True, **metrics: float) -> Any:
    """As much of a Trainer as the callback looks at."""
    named = {name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        global_step=step,
        is_global_zero=rank_zero,
        state=SimpleNamespace(fn="validate"),
        callback_metrics={"train/loss": torch.tensor(1.0), **named},
    )


def steps_on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


@pytest.fixture
def module(make_store: Make, make_module: Make, ast_settings: Make) -> DistillModule:
    return make_module(make_store(experts=1), ast_settings())


def test_last_and_best_point_to_their_steps_and_the_others_go(module: DistillModule, tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "set", make_dataset, select=True)
    history = [(10, 20.0, 10, [10]), (20, 50.0, 20, [20]), (30, 40.0, 20, [20, 30]), (40, 50.0, 20, [20, 40])]
    history += [(50, 60.0, 50, [50])]
    for step, accuracy, best, kept in history:
        with torch.no_grad():
            module.synthetic.images.fill_(step)
        writer.on_validation_end(evaluated(step, validation_accuracy=accuracy, test_accuracy=99.0 - step), module)
        assert steps_on_disk(tmp_path / "set") == [f"step_{each:06d}" for each in kept]
        assert (tmp_path / "set" / "last").resolve().name == f"step_{step:06d}"
        assert (tmp_path / "set" / "best").resolve().name == f"step_{best:06d}"
        last, chosen = (load_distilled(tmp_path / "set" / name) for name in ("last", "best"))
        assert (last.images == step).all()
        assert (chosen.images == best).all()
        assert last.metadata["iteration"] == step
        assert last.metadata["accuracy"] == pytest.approx(
            {"validation/accuracy": accuracy, "test/accuracy": 99.0 - step}
        )
    # links are relative: the folder can be moved
    (tmp_path / "set").rename(tmp_path / "moved")
    assert (load_distilled(tmp_path / "moved" / "best").images == 50).all()


@pytest.mark.parametrize("select", [True, False])
def test_test_accuracy_never_selects(module: DistillModule, tmp_path: Path, select: bool) -> None:
    writer = ArtifactWriter(tmp_path / "set", make_dataset, select=select)
    for step in (1, 2):
        writer.on_validation_end(evaluated(step, test_accuracy=50.0 * step), module)
    assert steps_on_disk(tmp_path / "set") == ["step_000002"]
    assert not (tmp_path / "set" / "best").exists()
    assert writer.best is None


def test_validation_accuracy_does_not_select_unless_asked_to(module: DistillModule, tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "set", make_dataset, select=False)
    writer.on_validation_end(evaluated(1, validation_accuracy=50.0), module)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["last", "step_000001"]


def test_best_is_remembered_over_a_resume(module: DistillModule, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    before = ArtifactWriter(folder, make_dataset, select=True)
    before.on_validation_end(evaluated(1, validation_accuracy=70.0), module)
    after = ArtifactWriter(folder, make_dataset, select=True)
    after.load_state_dict(before.state_dict())
    after.on_validation_end(evaluated(2, validation_accuracy=60.0), module)
    assert (folder / "best").resolve().name == "step_000001"
    after.on_validation_end(evaluated(2, validation_accuracy=80.0), module)  # the same step once more
    assert (folder / "best").resolve().name == "step_000002"
    assert steps_on_disk(folder) == ["step_000002"]


def test_only_the_first_rank_writes_and_all_know_the_best(module: DistillModule, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    writer = ArtifactWriter(folder, make_dataset, select=True)
    writer.on_validation_end(evaluated(1, rank_zero=False, validation_accuracy=30.0), module)
    assert not folder.exists()
    found = {"iteration": 1, "metrics": {"validation/accuracy": 30.0}}
    assert writer.state_dict() == {"last": found, "best": found}


def test_an_evaluation_beside_the_schedule_selects_for_this_run_only(module: DistillModule, tmp_path: Path) -> None:
    """A run that is made longer ends with the best of its schedule, like one that was that long from the start."""
    folder = tmp_path / "set"
    writer = ArtifactWriter(
        folder, make_dataset, select=True, states=StateOfIterations(tmp_path / "state", every=1, evaluated_every=2)
    )
    writer.on_validation_end(evaluated(2, validation_accuracy=70.0), module)
    writer.on_validation_end(evaluated(3, validation_accuracy=90.0), module)
    assert (folder / "best").resolve().name == "step_000003"
    assert steps_on_disk(folder) == ["step_000002", "step_000003"]  # the best of the schedule is kept
    longer = ArtifactWriter(folder, make_dataset, select=True)
    longer.load_state_dict(writer.state_dict())
    longer.on_fit_start(evaluated(3), module)
    assert (folder / "best").resolve().name == "step_000002"
    longer.on_validation_end(evaluated(4, validation_accuracy=80.0), module)
    assert (folder / "best").resolve().name == "step_000004"
    assert steps_on_disk(folder) == ["step_000004"]


def test_a_resumed_run_drops_what_its_state_does_not_know(module: DistillModule, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    writer = ArtifactWriter(folder, make_dataset, select=True)
    writer.on_validation_end(evaluated(1, validation_accuracy=70.0), module)
    known = writer.state_dict()
    shutil.copytree(folder / "step_000001", folder / "step_000002")  # written, and killed before its state
    (folder / ".step_000002.x.partial").mkdir()
    resumed = ArtifactWriter(folder, make_dataset, select=True)
    resumed.load_state_dict(known)
    resumed.on_fit_start(evaluated(1), module)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last", "step_000001"]


def test_in_a_fit_it_writes_what_was_evaluated(
    make_store: Make, make_module: Make, make_trainer: Make, ast_settings: Make, make_evaluator: Make, tmp_path: Path
) -> None:
    settings = ast_settings(max_steps=3, eval_every=2)
    evaluator = make_evaluator("test", "validation")
    module = make_module(make_store(), settings, evaluator=evaluator)
    writer = ArtifactWriter(tmp_path / "set", make_dataset, select=True)
    trainer = make_trainer(settings, writer)
    trainer.fit(module)
    written = load_distilled(tmp_path / "set" / "last")
    assert written.metadata["iteration"] == 2
    assert not torch.equal(written.images, module.synthetic.images)  # those of iteration 3, which no one has evaluated
    trainer.validate(module, verbose=False)
    written = load_distilled(tmp_path / "set" / "last")
    assert written.metadata["iteration"] == 3
    assert torch.equal(written.images, module.synthetic.images)
    found = [evaluator.run([index], lambda _: module.training_set(), torch.device("cpu")) for index in range(2)]
    for split in ("test", "validation"):
        mean = sum(each[split][0] for each in found) / 2
        assert written.metadata["accuracy"][f"{split}/accuracy"] == pytest.approx(mean)
    assert set(written.metadata["accuracy"]) == {
        f"{split}/{name}" for split in ("test", "validation") for name in ("accuracy", "accuracy_std")
    }
