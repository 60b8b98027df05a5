"""Progress as text where there is no terminal, as a bar where there is one, and the estimate."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ast_lightning.callbacks import RunProgress, progress
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
        is_global_zero=True,
        callback_metrics=values,
    )


def go_through(callback: RunProgress, total: int = 20, first: int = 0) -> None:
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_start(trainer_at(first, total), module)
    for step in range(first + 1, total + 1):
        callback.on_train_batch_end(trainer_at(step, total, train_loss=0.5), module, None, None, step - 1)
    callback.on_train_end(trainer_at(total, total), module)


def test_a_log_has_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    go_through(RunProgress("distilling", lines=4))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" [")[0] for line in lines] == [f"distilling: {step}/20" for step in (5, 10, 15, 20)]
    assert all("step/s" in line and "train/loss 0.5" in line for line in lines)


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    go_through(RunProgress("distilling"), first=7)
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert "20/20" in last
    assert "train/loss 0.5" in last
    assert len(last) <= 80


def test_lines_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    bar, module = RunProgress("distilling"), SimpleNamespace(device=torch.device("cpu"))
    bar.on_train_start(trainer_at(0), module)  # type: ignore[arg-type]
    say("a line")
    bar.on_exception(trainer_at(1), module, RuntimeError())  # type: ignore[arg-type]
    assert "a line" in [line.strip() for line in terminal.getvalue().replace("\r", "\n").splitlines()]
    assert bar._bar is None


def test_a_test_is_counted_in_batches(capsys: pytest.CaptureFixture[str]) -> None:
    bar, module = RunProgress("random", lines=2), SimpleNamespace()
    bar.on_test_start(trainer_at(0, 4), module)  # type: ignore[arg-type]
    for index in range(4):
        bar.on_test_batch_end(trainer_at(0, 4), module, None, None, index)  # type: ignore[arg-type]
    bar.on_test_end(trainer_at(0, 4), module)  # type: ignore[arg-type]
    assert [line.split(" [")[0] for line in capsys.readouterr().out.splitlines()] == ["random: 2/4", "random: 4/4"]


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
