"""Which epochs are stored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_lightning.config.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "stored", "last"),
    [
        (Schedule(4), [0, 1, 2, 3, 4], 4),
        (Schedule(1), [0, 1], 1),
        (Schedule(6, 2), [0, 2, 4, 6], 6),
        (Schedule(7, 3), [0, 3, 6, 7], 6),
        (Schedule(5, 9), [0, 5], 0),
        (Schedule(9, 1, 3), [0, 1, 2, 3, 9], 3),
        (Schedule(9, 2, 5), [0, 2, 4, 9], 4),
        (Schedule(9, 2, 100), [0, 2, 4, 6, 8, 9], 8),
        (Schedule(4, 1, 4), [0, 1, 2, 3, 4], 4),
    ],
)
def test_stored_epochs(schedule: Schedule, stored: list[int], last: int) -> None:
    assert schedule.stored() == stored
    assert schedule.last == last


@given(epochs=st.integers(1, 60), every=st.integers(1, 70), bound=st.none() | st.integers(1, 70))
@settings(derandomize=True, deadline=None)
def test_it_holds_what_it_lists(epochs: int, every: int, bound: int | None) -> None:
    schedule = Schedule(epochs, every, bound)
    assert [epoch for epoch in range(-1, epochs + 3) if schedule.holds(epoch)] == schedule.stored()
    assert {0, epochs, schedule.last} <= set(schedule.stored())
    assert all(epoch == epochs or epoch <= (bound or epochs) for epoch in schedule.stored())


def test_a_store_of_other_settings_keeps_every_epoch() -> None:
    assert Schedule.of({"epochs": 3, "expert": {}}) == Schedule.of({"epochs": 3}) == Schedule(3)
    expert = {"every_n_epochs": 2, "max_epoch": 4, "lr": 0.1}
    assert Schedule.of({"epochs": 8, "expert": expert}) == Schedule(8, 2, 4)
