"""Progress as text where there is no terminal, as a bar where there is one, and the estimate."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from ast_lightning.callbacks import RunEstimate, RunProgress, progress
from ast_lightning.terminal import format_seconds


def trainer_at(step: int, total: int = 20, **metrics: float) -> Any:
    values = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        global_step=step, estimated_stepping_batches=total, is_global_zero=True, callback_metrics=values
    )


def go_through(callback: Any, total: int = 20) -> None:
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_start(trainer_at(0, total), module)
    for step in range(1, total + 1):
        callback.on_train_batch_end(trainer_at(step, total, train_loss=0.5), module, None, None, step - 1)
    callback.on_train_end(trainer_at(total, total), module)


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=stream, force_terminal=request.param, width=120, color_system=None)
    )
    return stream


def test_it_says_how_far_how_fast_and_how_good(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    go_through(RunProgress("distilling", lines=4))
    lines = capsys.readouterr().out.splitlines()
    if stream.getvalue():  # a terminal: the bar ends complete
        assert lines == []
        assert "20/20" in stream.getvalue()
        assert "train/loss 0.5" in stream.getvalue()
    else:
        assert [line.split(",")[0] for line in lines] == [f"distilling: {step}/20" for step in (5, 10, 15, 20)]
        assert all("left" in line and "train/loss 0.5" in line for line in lines)
        assert "steps/s" in lines[0]


def test_a_disabled_bar_is_silent(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    bar = RunProgress("distilling")
    bar.disable()
    go_through(bar)
    bar.on_exception(trainer_at(1), SimpleNamespace(), RuntimeError())  # type: ignore[arg-type]
    assert stream.getvalue() == capsys.readouterr().out == ""
    bar.enable()
    go_through(bar)
    assert stream.getvalue() or capsys.readouterr().out


def test_the_estimate_is_said_once_and_counts_the_runs_to_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 3))  # three seconds between looks at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    callback = RunEstimate(runs=2, after=3)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_start(trainer_at(0), module)
    for step in range(1, 21):
        callback.on_train_batch_end(trainer_at(step), module, None, None, step - 1)
    # one look at step 1 and one at step 4: 1 s a step, 2 · 20 − 4 steps to come
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("estimate: 36 s of training")
    assert "peak memory" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3661, "1 h 01 min"), (7325, "2 h 02 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
