"""Progress as text where there is no terminal, as a bar where there is one, and the estimate."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ast_lightning.callbacks import RunProgress, SharedProgress, progress
from ast_lightning.terminal import format_seconds, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trainer_at(step: int, total: int = 20, **metrics: float) -> Any:
    values = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        global_step=step,
        estimated_stepping_batches=total,
        num_test_batches=[total],
        num_val_batches=[total],
        is_global_zero=True,
        is_last_batch=step == total,
        callback_metrics=values,
    )


def go_through(callback: RunProgress, total: int = 20, first: int = 0, **evaluated: float) -> None:
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_start(trainer_at(first, total), module)
    for step in range(first + 1, total + 1):
        callback.on_train_batch_end(trainer_at(step, total, train_loss=0.5), module, None, None, step - 1)
    callback.on_train_epoch_end(trainer_at(total, total, train_loss=0.5, **evaluated), module)
    callback.on_train_end(trainer_at(total, total), module)


def test_a_log_has_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    go_through(RunProgress("distilling", lines=4), test_accuracy=80.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" [")[0] for line in lines] == [f"distilling: {step}/20" for step in (5, 10, 15, 20)]
    assert all("step/s" in line and "train/loss 0.5" in line for line in lines)
    assert "test/accuracy 80" in lines[-1]  # of the evaluation that follows the last step


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    go_through(RunProgress("distilling"), first=7)
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert "20/20" in last
    assert "train/loss 0.5" in last
    assert len(re.sub(r"[\d.]+step/s", "1000.00step/s", last)) <= 80  # these steps take no time


@pytest.mark.parametrize("columns", [40, 50, 60])
def test_a_narrow_terminal_shows_bar_count_and_remaining_time(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    go_through(RunProgress("distilling"), total=5000)
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert re.fullmatch(r"distilling \|\S+\| 5000/5000 00:00 left", last)
    assert len(last) <= columns


def test_a_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 10
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", clock)
    go_through(RunProgress("expert 0", lines=1))
    steps = [int(line.split("/")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert 3 <= len(steps) <= 5  # twenty steps of ten seconds
    assert steps[-1] == 20


def test_lines_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    bar, module = RunProgress("distilling"), SimpleNamespace(device=torch.device("cpu"))
    bar.on_train_start(trainer_at(0), module)  # type: ignore[arg-type]
    say("a line")
    bar.on_exception(trainer_at(1), module, RuntimeError())  # type: ignore[arg-type]
    assert "a line" in [line.strip() for line in terminal.getvalue().replace("\r", "\n").splitlines()]
    assert bar._bar is None


def evaluate(bar: RunProgress, evaluator: Any, epochs: int, stage: str) -> None:
    """As a Trainer evaluates, with two groups of networks."""
    trainer: Any = trainer_at(0, 2, train_loss=0.5)
    trainer.training = stage == "validation"
    getattr(bar, f"on_{stage}_start")(trainer, SimpleNamespace())
    for _ in range(epochs):
        evaluator.on_epoch()
    getattr(bar, f"on_{stage}_end")(trainer, SimpleNamespace())


@pytest.mark.parametrize(("stage", "name"), [("test", "random"), ("validation", "evaluating")])
def test_an_evaluation_is_counted_in_epochs_of_groups(monkeypatch: pytest.MonkeyPatch, stage: str, name: str) -> None:
    terminal, evaluator = Terminal(), SimpleNamespace(settings=SimpleNamespace(epochs=3))
    monkeypatch.setattr(sys, "stdout", terminal)
    bar = RunProgress("random", evaluator=evaluator)  # type: ignore[arg-type]
    evaluate(bar, evaluator, 6, stage)
    shown = terminal.getvalue()
    assert f"{name}:   0%" in shown
    assert "0/6 [" in shown
    assert ("6/6 [" in shown) == (stage == "test")  # inside a distillation, it disappears
    assert "train/loss" not in shown


def test_a_long_evaluation_prints_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 12))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    evaluator = SimpleNamespace(settings=SimpleNamespace(epochs=5))
    evaluate(RunProgress("distilling", evaluator=evaluator), evaluator, 10, "validation")  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("evaluating: ") and "/10 [" in line and "epoch" in line for line in lines)


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar, trainer = RunProgress("distilling"), trainer_at(20)
    trainer.is_global_zero = False
    bar.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, SimpleNamespace(), None, None, 19)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_the_estimate_is_printed_once_and_counts_the_runs_to_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 5))  # five seconds between looks at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    go_through(RunProgress("expert 0", lines=0, runs=2))
    # one look at step 1 and one at step 6: 1 s a step, 2 · 20 − 6 steps to come
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("estimate: 34 s of training")
    assert "peak memory" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3661, "1 h 01 min"), (7325, "2 h 02 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def go_through_parts(shared: SharedProgress) -> None:
    for name, epochs, work in (("convnet, random", 4, 1.0), ("resnet18, random", 2, 9.0)):
        evaluator: Any = SimpleNamespace(settings=SimpleNamespace(epochs=epochs), on_epoch=None)
        callback = shared.part(name, evaluator, work)
        callback.on_test_start(trainer_at(0, total=1), None)  # type: ignore[arg-type]
        for _ in range(epochs):
            evaluator.on_epoch()
    shared.close()


def test_one_bar_weighs_evaluations_by_their_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET", 0)
    go_through_parts(SharedProgress(10.0))
    lines = [line.split(" [")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *(f"convnet, random: {share} %" for share in (2, 5, 8, 10)),
        *(f"resnet18, random: {share} %" for share in (55, 100)),
    ]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    go_through_parts(SharedProgress(10.0))
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("resnet18, random")
    assert "100 %" in last
