"""Straightened trajectories against values worked out by hand, and what they read and keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories import TrajectoryStore, waypoints
from ast_lightning.trajectories.waypoints import StraightenedTrajectories, check_waypoints

LAYOUT = [["a", [1]], ["b", [2]], ["c", [1, 1]]]
EPOCHS = 6


def store_of(folder: Path, trajectories: list[Tensor], **expert: Any) -> TrajectoryStore:
    """A store of three tensors, with trajectories ``[E + 1, 4]``."""
    network = {"target": "none", "arguments": {}, "parameters": LAYOUT}
    metadata = {"network": network, "data": {}, "expert": expert, "epochs": EPOCHS, "seed": 0, "versions": {}}
    store = TrajectoryStore.create(folder / "store", metadata)
    for index, trajectory in enumerate(trajectories):
        for epoch in store.schedule.stored():
            a, b, c = trajectory[epoch].split([1, 2, 1])
            store.write_snapshot(index, epoch, {"a": a, "b": b, "c": c.view(1, 1)})
        store.finish(index, {})
    return store


HAND = torch.tensor(  # a walks 1 a step, then 2, 4, 2; b walks along a line of direction (3, 4); c rests until epoch 4
    [
        [0.0, 0.0, 0.0, 1.0],
        [1.0, 3.0, 4.0, 1.0],
        [2.0, 3.0, 4.0, 1.0],
        [4.0, 6.0, 8.0, 1.0],
        [8.0, 6.0, 8.0, 1.0],
        [10.0, 9.0, 12.0, 3.0],
        [12.0, 9.0, 12.0, 4.0],
    ]
)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        # corners for waypoints 0, 4, 6: θ_0, ½ (θ_3 + θ_5) = (7, 7.5, 10, 2), ½ (θ_5 + θ_6) = (11, 9, 12, 3.5)
        # lengths of a: 1, 1, 2, 4 | 2, 2; of b: 5, 0, 5, 0 | 5, 0; of c: 0, 0, 0, 0 (uniform) | 2, 1
        (0.0, [0.0, 0.0, 0.0, 1.0]),
        (1.0, [7 / 8, 7.5 / 2, 5.0, 1.25]),
        (2.5, [7 * (2 + 1) / 8, 7.5 * 0.75, 7.5, 1.625]),
        (3.75, [7 * (4 + 3) / 8, 7.5, 10.0, 1 + 3.75 / 4]),
        (4.0, [7.0, 7.5, 10.0, 2.0]),
        (4.5, [8.0, 8.25, 11.0, 2 + 1.5 * (0.5 * 2 / 3)]),
        (5.5, [10.0, 9.0, 12.0, 2 + 1.5 * (2.5 / 3)]),
        (6.0, [11.0, 9.0, 12.0, 3.5]),
        (9.0, [11.0, 9.0, 12.0, 3.5]),
    ],
)
def test_points_of_a_straightened_trajectory(tmp_path: Path, time: float, expected: list[float]) -> None:
    straight = StraightenedTrajectories(store_of(tmp_path, [HAND]), [0, 4, 6])
    (point,) = straight.read_window(0, time, 0)
    assert torch.equal(point, torch.tensor(expected, dtype=torch.float64).float())


def test_windows_are_the_formula_on_random_trajectories(tmp_path: Path) -> None:
    walks = torch.randn(2, EPOCHS + 1, 4, generator=torch.Generator().manual_seed(0))
    straight = StraightenedTrajectories(store_of(tmp_path, list(walks)), [0, 2, 3, 6])
    for expert, walk in enumerate(walks.double()):
        corners = [walk[0], (walk[1] + walk[3]) / 2, (walk[2] + walk[4]) / 2, (walk[5] + walk[6]) / 2]

        def at(time: float, walk: Tensor = walk, corners: list[Tensor] = corners) -> Tensor:
            begin, end, piece = next(
                (begin, end, piece) for piece, (begin, end) in enumerate([(0, 2), (2, 3), (3, 6)]) if time < end
            )
            point = []
            for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
                lengths = [float((walk[i + 1, rows] - walk[i, rows]).norm()) for i in range(begin, end)]
                passed = (each * min(1.0, max(0.0, time - begin - i)) for i, each in enumerate(lengths))
                share = sum(passed) / sum(lengths)
                point.append((1 - share) * corners[piece][rows] + share * corners[piece + 1][rows])
            return torch.cat(point)

        window = straight.read_window(expert, 1.625, 5)
        assert window.dtype == torch.float32
        expected = torch.stack([*(at(1.625 + offset) for offset in range(5)), corners[-1]])
        torch.testing.assert_close(window.double(), expected, rtol=3e-7, atol=3e-7)


def test_an_expert_is_read_once_unless_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path, [HAND, -HAND])
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    read, seen = store.read_snapshot, []
    monkeypatch.setattr(store, "read_snapshot", lambda *which: seen.append(which) or read(*which))
    straight = StraightenedTrajectories(store, [0, 4, 6])
    assert torch.equal(straight.read_window(0, 0.5, 2), straight.read_window(0, 0.5, 2))
    assert seen == [(0, epoch) for epoch in range(EPOCHS + 1)]

    size = 4 * 3 * 4 + 8 * 6 * 3
    monkeypatch.setattr(waypoints, "LARGEST_CACHE", size)
    windows = [straight.read_window(1, 0.5, 2) for _ in range(2)]
    assert torch.equal(*windows)
    assert len(seen) == 3 * (EPOCHS + 1)  # the second expert does not fit beside the first
    straight.read_window(0, 3.0, 1)
    assert len(seen) == 3 * (EPOCHS + 1)
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before  # nothing is written


@pytest.mark.parametrize(
    ("epochs", "schedule", "words"),
    [
        ([0, 4, 6], Schedule(6, every_n_epochs=2), r"waypoints=\[0, 4, 6\].*expert\.every_n_epochs=2"),
        ([0, 4, 6], Schedule(5), "up to epoch 5 only.*let the last waypoint be 5 or earlier"),
        ([0, 4, 6], Schedule(6, max_epoch=4), "up to epoch 4 only"),
    ],
)
def test_waypoints_that_are_not_stored_are_rejected(epochs: list[int], schedule: Schedule, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_waypoints(epochs, schedule)
    check_waypoints([0, math.floor(schedule.last / 2)], Schedule(schedule.last))
