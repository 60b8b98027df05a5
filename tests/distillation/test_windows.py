"""The stream of trajectory windows: order, start epochs, division over ranks, resuming, refusals."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ast_lightning.config.schedule import Schedule
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation.trajectory_matching import (
    TrajectoryWindows,
    Window,
    check_window,
    check_windows,
    choose_window,
)
from ast_lightning.distillation.trajectory_matching.windows import uniform
from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.waypoints import StraightenedTrajectories
from tests import PATIENCE

MakeStore = Callable[..., TrajectoryStore]


def windows_of(store: TrajectoryStore, epochs: int, bound: int, **options: Any) -> TrajectoryWindows:
    settings = TrajectoryMatchingSettings(expert_epochs=epochs, max_start_epoch=bound, syn_steps=10)
    return TrajectoryWindows(store, settings, **options)


def taken(windows: TrajectoryWindows, count: int, first: int = 0, stride: int = 1) -> list[tuple[int, int, float]]:
    return [(each.index, each.expert, each.start_epoch) for each in islice(windows.stream(first, stride), count)]


@given(
    experts=st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    turn=st.integers(0, 10**6),
    seed=st.integers(0, 10**9),
)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_each_pass_takes_every_expert_once(experts: list[int], turn: int, seed: int) -> None:
    first = turn * len(experts)
    seen = [choose_window(index, experts, 5, seed)[0] for index in range(first, first + len(experts))]
    assert sorted(seen) == sorted(experts)


def test_the_order_is_fresh_each_pass() -> None:
    orders = {tuple(choose_window(8 * turn + each, range(8), 5, 0)[0] for each in range(8)) for turn in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize("bound", [1, 3, 7])
def test_start_epochs_are_uniform_below_the_bound(bound: int) -> None:
    counts = Counter(choose_window(index, range(4), bound, 1)[1] for index in range(700))
    assert sorted(counts) == list(range(bound))
    assert min(counts.values()) > 0.7 * 700 / bound


def test_start_epochs_do_not_follow_from_the_expert() -> None:
    pairs = {choose_window(index, range(3), 3, 2) for index in range(120)}
    assert len(pairs) == 9


@given(world=st.integers(1, 5), steps=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_ranks_partition_the_stream(world: int, steps: int, seed: int, store: TrajectoryStore) -> None:
    def stream(rank: int, world_size: int, count: int) -> list[tuple[int, int, float]]:
        windows = windows_of(store, 2, 3, seed=seed)
        return taken(windows, count, rank, world_size)

    alone = stream(0, 1, world * steps)
    assert [index for index, _, _ in alone] == list(range(world * steps))
    shared = [stream(rank, world, steps) for rank in range(world)]
    assert [each for turn in zip(*shared, strict=True) for each in turn] == alone


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (2, 3)])
def test_a_stream_begins_anywhere(store: TrajectoryStore, rank: int, world: int) -> None:
    windows = windows_of(store, 2, 3)
    whole = taken(windows, 9, rank, world)
    assert taken(windows, 5, rank + 4 * world, world) == whole[4:]


def test_a_window_is_the_stored_snapshots(store: TrajectoryStore) -> None:
    windows = windows_of(store, 3, 3, seed=4)
    for window in islice(windows.stream(0), 6):
        assert isinstance(window, Window)
        assert (window.expert, window.start_epoch) == choose_window(window.index, [0, 1, 2], 3, 4)
        stored = []
        for epoch in range(window.start_epoch, window.start_epoch + 4):
            file = store.folder / f"expert_{window.expert:04d}" / f"epoch_{epoch:04d}.safetensors"
            tensors = load_file(file)
            stored.append(torch.cat([tensors[name].flatten() for name, _ in store.layout]))
        assert torch.equal(window.start, stored[0])
        assert torch.equal(window.targets, torch.stack(stored[1:]))
        assert window.targets.dtype == torch.float32


def test_only_the_named_and_complete_experts_are_used(make_store: MakeStore) -> None:
    store = make_store(experts=4)
    (store.expert_folder(2) / "expert.json").unlink()
    assert {expert for _, expert, _ in taken(windows_of(store, 2, 3), 30)} == {0, 1, 3}
    chosen = windows_of(store, 2, 3, experts=[3, 1])
    assert {expert for _, expert, _ in taken(chosen, 30)} == {1, 3}


@pytest.mark.parametrize(("epochs", "bound", "total"), [(1, 5, 5), (2, 4, 5), (3, 3, 5), (5, 1, 5), (2, 49, 50)])
def test_windows_may_reach_the_last_epoch_and_no_further(epochs: int, bound: int, total: int) -> None:
    check_window(epochs, bound, Schedule(total))
    with pytest.raises(ConfigurationError, match=rf"max_start_epoch={bound + 1}.*reach epoch {total + 1}") as caught:
        check_window(epochs, bound + 1, Schedule(total))
    assert f"set distill.max_start_epoch={bound} " in str(caught.value)


def test_a_window_longer_than_any_trajectory() -> None:
    with pytest.raises(ConfigurationError, match=r"lower distill\.expert_epochs"):
        check_window(6, 1, Schedule(5))


def test_the_largest_window_can_be_read(store: TrajectoryStore) -> None:
    windows = windows_of(store, 3, 3)
    assert {window.start_epoch for window in islice(windows.stream(0), 40)} == {0, 1, 2}
    with pytest.raises(ConfigurationError, match="max_start_epoch"):
        windows_of(store, 3, 4)


def test_a_store_without_complete_experts_is_refused(make_store: MakeStore) -> None:
    store = make_store(experts=1, finish=False)
    with pytest.raises(ConfigurationError, match=r"experts_dir=.*no complete expert"):
        windows_of(store, 2, 3)


@pytest.mark.parametrize(
    ("epochs", "bound", "schedule"),
    [
        (2, 4, Schedule(6, 2)),  # starts 0, 2 → 4
        (2, 6, Schedule(6, 2)),  # starts 0, 2, 4 → 6
        (4, 4, Schedule(7, 2)),  # 0, 2, 4, 6, 7: starts 0, 2 → 6
        (3, 2, Schedule(9, 1, 4)),
        (4, 2, Schedule(9, 2, 5)),  # 0, 2, 4, 9: start 0 → 4
    ],
)
def test_the_largest_bounds_of_thinned_trajectories(epochs: int, bound: int, schedule: Schedule) -> None:
    check_window(epochs, bound, schedule)
    largest = schedule.last - epochs + schedule.every_n_epochs
    check_window(epochs, largest, schedule)
    with pytest.raises(ConfigurationError, match=f"set distill.max_start_epoch={largest} or lower") as caught:
        check_window(epochs, largest + 1, schedule)
    ends = "expert.max_epoch" if schedule.max_epoch else "expert.epochs"
    assert f"the trajectories end at {ends}=" in caught.value.problem
    for start in range(0, largest, schedule.every_n_epochs):
        assert all(schedule.holds(start + offset) for offset in range(0, epochs + 1, schedule.every_n_epochs))


@pytest.mark.parametrize(("epochs", "nearest"), [(1, 4), (5, 4), (7, 4), (10, 8)])
def test_windows_that_end_between_stored_epochs_are_refused(epochs: int, nearest: int) -> None:
    words = rf"distill\.expert_epochs={epochs}: .*expert\.every_n_epochs=4.*set distill\.expert_epochs={nearest},"
    with pytest.raises(ConfigurationError, match=words):
        check_window(epochs, 1, Schedule(50, 4))


def test_start_epochs_of_thinned_trajectories_are_uniform_among_the_stored() -> None:
    counts = Counter(choose_window(index, range(4), 7, 1, every_n_epochs=3)[1] for index in range(600))
    assert sorted(counts) == [0, 3, 6]
    assert min(counts.values()) > 150


def test_windows_of_a_thinned_store(make_store: MakeStore) -> None:
    store = make_store(experts=2, epochs=7, expert={"every_n_epochs": 2})
    windows = windows_of(store, 4, 4, seed=1)
    seen = set()
    for window in islice(windows.stream(0), 12):
        seen.add(window.start_epoch)
        for row, epoch in zip([window.start, *window.targets], range(window.start_epoch, 9, 2), strict=False):
            assert torch.equal(row, store.read_snapshot(window.expert, epoch))
        assert len(window.targets) == 2
    assert seen == {0, 2}
    with pytest.raises(ConfigurationError, match=r"distill\.expert_epochs=3"):
        windows_of(store, 3, 1)


def settings_of(**changes: Any) -> TrajectoryMatchingSettings:
    return TrajectoryMatchingSettings(**{"expert_epochs": 2, "max_start_epoch": 20, **changes})


def test_the_bound_on_start_epochs_grows_as_in_datm() -> None:
    growing = settings_of(first_start_bound=10, expansion_end=1000)
    bounds = [growing.start_bound(iteration) for iteration in (0, 99, 100, 199, 200, 950, 999, 1000, 9999)]
    assert bounds == [10, 10, 11, 11, 12, 19, 19, 20, 20]
    assert settings_of(first_start_bound=20, expansion_end=7).start_bound(3) == 20
    assert {settings_of().start_bound(iteration) for iteration in (0, 10**6)} == {20}


def test_start_epochs_lie_between_the_lowest_and_the_growing_bound() -> None:
    settings = settings_of(min_start_epoch=5, max_start_epoch=9, first_start_bound=6, expansion_end=300)
    settings = replace(settings, windows_per_step=2)  # iteration = index // 2
    seen: dict[int, set[float]] = {}
    for index in range(800):
        seen.setdefault(index // 200, set()).add(uniform(index, range(4), 1, settings, 0)[1])
    assert seen == {0: {5}, 1: {5, 6}, 2: {5, 6, 7}, 3: {5, 6, 7, 8}}


def test_start_epochs_of_default_settings_are_those_of_earlier_versions() -> None:
    expected = [(0, 15), (1, 15), (2, 12), (0, 8), (1, 18), (2, 1)]
    assert [uniform(index, range(3), 1, settings_of(), 5) for index in range(6)] == expected
    thinned = [uniform(index, range(3), 3, settings_of(min_start_epoch=4), 5)[1] for index in range(200)]
    assert {*thinned} == {6, 9, 12, 15, 18}


def test_windows_of_straightened_trajectories(store: TrajectoryStore) -> None:
    settings = settings_of(waypoints=[0, 3, 5], min_start_epoch=1, max_start_epoch=5, expert_epochs=3)
    windows, straight = TrajectoryWindows(store, settings, seed=2), StraightenedTrajectories(store, [0, 3, 5])
    starts = []
    for window in islice(windows.stream(0), 60):
        expected = straight.read_window(window.expert, window.start_epoch, 3)
        assert torch.equal(torch.cat([window.start[None], window.targets]), expected)
        if window.start_epoch > 2:
            assert torch.equal(window.targets[-1], straight.read_window(window.expert, 5.0, 0)[0])
        starts.append(window.start_epoch)
    assert len({*starts}) == 60
    assert 1 <= min(starts) < 1.3
    assert 4.7 < max(starts) < 5
    torch.set_default_dtype(torch.float64)  # as Lightning does for precision=64-true
    try:
        again = TrajectoryWindows(store, settings, seed=2).window(7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.start_epoch == starts[7]
    assert torch.equal(again.targets, windows.window(7).targets)
    assert sum(starts) / 60 == pytest.approx(3, abs=0.4)


@pytest.mark.parametrize(
    ("option", "changes", "words"),
    [
        ("min_start_epoch", {"min_start_epoch": 20}, "below distill.max_start_epoch=20"),
        ("min_start_epoch", {"min_start_epoch": 9, "first_start_bound": 9, "expansion_end": 5}, "first_start_bound=9"),
        ("first_start_bound", {"first_start_bound": 21, "expansion_end": 5}, "set distill.first_start_bound=20 "),
        ("max_start_epoch", {"waypoints": [0, 10, 19]}, "set distill.max_start_epoch=19 or lower"),
        ("waypoints", {"waypoints": [0, 10, 31]}, "up to epoch 30 only"),
        ("waypoints", {"waypoints": 31}, "give at most 30"),
    ],
)
def test_windows_without_a_start_are_rejected(option: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        check_windows(settings_of(**changes), Schedule(30))
    assert caught.value.option == f"distill.{option}"


def test_a_lowest_start_between_stored_epochs() -> None:
    check_windows(settings_of(min_start_epoch=11, expert_epochs=4), Schedule(40, every_n_epochs=4))
    with pytest.raises(ConfigurationError, match=r"min_start_epoch=17: expert\.every_n_epochs=4 stores no epoch"):
        check_windows(settings_of(min_start_epoch=17, expert_epochs=4), Schedule(40, every_n_epochs=4))


def reading(windows: TrajectoryWindows, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Notes which windows are read, and by which thread."""
    read, notes = windows.window, []

    def noted(index: int) -> Window:
        notes.append((index, threading.current_thread().name))
        return read(index)

    monkeypatch.setattr(windows, "window", noted)
    return notes


def test_the_next_window_is_read_while_one_is_in_use(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch, window_readers: Callable[[], list[str]]
) -> None:
    windows = windows_of(store, 2, 3)
    notes = reading(windows, monkeypatch)
    stream = windows.stream(0)
    assert notes == []  # nothing before the first is asked for
    for count in range(1, 4):
        next(stream)
        deadline = time.monotonic() + 10
        while len(notes) < count + 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert [index for index, _ in notes] == list(range(count + 1))
    assert all(name.startswith("next window") for _, name in notes)
    assert len({name for _, name in notes}) == 1
    stream.close()  # type: ignore[attr-defined]
    assert window_readers() == []


def test_an_iteration_that_is_left_leaves_no_thread(
    store: TrajectoryStore, window_readers: Callable[[], list[str]]
) -> None:
    windows = windows_of(store, 2, 3)
    whole = taken(windows, 6)
    assert window_readers() == []
    for first in (2, 0, 5):
        assert taken(windows, 1, first) == whole[first : first + 1]
    assert window_readers() == []


def test_two_iterations_do_not_disturb_each_other(store: TrajectoryStore) -> None:
    windows = windows_of(store, 2, 3)
    first = windows.stream(0)
    next(first)
    assert [index for index, _, _ in taken(windows, 2, 3, 2)] == [3, 5]
    assert [next(first).index, next(first).index] == [1, 2]


def test_an_error_surfaces_at_its_window_and_no_earlier(
    make_store: MakeStore, window_readers: Callable[[], list[str]]
) -> None:
    store = make_store(experts=3)
    windows = windows_of(store, 2, 3)
    bad = next(index for index in range(4, 100) if windows.window(index).expert == windows.window(4).expert)
    expert, start = choose_window(bad, windows.experts, 3, 0)
    path = store.snapshot_path(expert, start)
    stream = windows.stream(0)
    for index in range(bad):
        if index == bad - 1:
            path.unlink()
        window = next(stream)
        assert window.index == index
    with pytest.raises(ConfigurationError, match=path.name):
        next(stream)
    assert window_readers() == []


@pytest.mark.slow
def test_a_process_ends_with_a_window_in_reserve(store: TrajectoryStore) -> None:
    """Also where the iteration was never closed."""
    code = f"""
import sys, threading
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation.trajectory_matching import TrajectoryWindows
from ast_lightning.trajectories import TrajectoryStore
settings = TrajectoryMatchingSettings(expert_epochs=2, max_start_epoch=3)
stream = TrajectoryWindows(TrajectoryStore.open({str(store.folder)!r}), settings).stream(0)
print(next(stream).index)
sys.kept = stream
"""
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (result.stdout.strip(), result.stderr) == ("0", "")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    """Three experts of five epochs with four parameters each: only files and order matter here."""
    network = {"target": "none", "arguments": {}, "parameters": [["weight", [1, 3]], ["bias", [1]]]}
    metadata = {"network": network, "data": {}, "expert": {}, "epochs": 5, "seed": 0, "versions": {}}
    made = TrajectoryStore.create(tmp_path_factory.mktemp("windows") / "store", metadata)
    for expert in range(3):
        for epoch in range(6):
            value = float(10 * expert + epoch)
            made.write_snapshot(expert, epoch, {"weight": torch.full((1, 3), value), "bias": torch.tensor([-value])})
        made.finish(expert, {})
    return made
