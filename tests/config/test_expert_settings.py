"""The clipping schedule, the epoch of the decay, and what settings are refused."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_lightning.errors import ConfigurationError
from ast_lightning.experts import ExpertSettings

FACTORS = st.just(0.0) | st.floats(1e-30, 1)


def test_published_clipping_schedule() -> None:
    factors = [ExpertSettings().clip_factor(epoch) for epoch in range(50)]
    wanted = [0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95]
    assert factors[:10] == pytest.approx(wanted, abs=1e-12)
    assert factors[10:] == [1.0] * 40


def test_published_defaults() -> None:
    values = ExpertSettings()
    assert (values.epochs, values.batch_size, values.lr, values.momentum) == (50, 256, 0.003, 0.9)
    assert (values.weight_decay, values.lr_decay, values.decay_after) == (1e-3, 0.6, 26)
    assert (values.gradient_penalty, values.penalty_norm) == (2.0, "pixel")


@pytest.mark.parametrize("epoch", [0, 5, 9, 10])
def test_no_clipping_means_the_whole_cross_entropy(epoch: int) -> None:
    assert ExpertSettings(clipping=False).clip_factor(epoch) == 1.0
    assert ExpertSettings(clip_epochs=0).clip_factor(epoch) == 1.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(start=FACTORS, end=FACTORS, epochs=st.integers(1, 60))
def test_schedule_is_a_straight_line_and_then_one(start: float, end: float, epochs: int) -> None:
    values = ExpertSettings(clip_start=start, clip_end=end, clip_epochs=epochs)
    factors = [values.clip_factor(epoch) for epoch in range(epochs)]
    assert factors[0] == start
    assert all(min(start, end) - 1e-12 <= factor <= max(start, end) + 1e-12 for factor in factors)
    for epoch, factor in enumerate(factors):
        assert math.isclose((factor - start) * epochs, (end - start) * epoch, abs_tol=1e-9)
    assert values.clip_factor(epochs) == values.clip_factor(epochs + 100) == 1.0


@pytest.mark.parametrize(("epochs", "wanted"), [(1, 1), (6, 4), (7, 4), (50, 26), (51, 26)])
def test_decay_comes_after_the_published_epoch(epochs: int, wanted: int) -> None:
    assert ExpertSettings(epochs=epochs).decay_after == wanted
    assert ExpertSettings(epochs=epochs, lr_decay_epoch=0).decay_after == 0
    assert ExpertSettings(epochs=epochs, lr_decay_epoch=3).decay_after == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", -8),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr_decay", 0.0),
        ("lr_decay", math.nan),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("clip_start", -0.1),
        ("clip_end", -0.1),  # a negative factor trains towards wrong answers
        ("clip_epochs", -1),
        ("gradient_penalty", -2.0),
        ("gradient_penalty", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("penalty_norm", "channel"),
        ("lr_decay_epoch", -2),  # a decay that silently never comes
    ],
)
def test_what_cannot_work_is_refused_by_name(name: str, value: float | str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExpertSettings(**{name: value})  # type: ignore[arg-type]
    assert caught.value.option == f"expert.{name}"
    assert str(value) in str(caught.value)
    assert "Remedy: " in str(caught.value)


def test_edges_of_what_is_allowed() -> None:
    ExpertSettings(epochs=1, batch_size=1, momentum=0.0, weight_decay=0.0, gradient_penalty=0.0, clip_start=0.0)
    ExpertSettings(lr_decay=1.0, lr_decay_epoch=0, penalty_norm="sample", momentum=0.999)
    assert {field.name for field in fields(ExpertSettings)} >= {"epochs", "lr", "clipping", "augment"}
