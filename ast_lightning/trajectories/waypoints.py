"""Straightened trajectories: a view of a trajectory store (MCT, "Matching Convexified Trajectory", CVPR 2025).

Between the waypoint epochs w_0 = 0 < w_1 < … < w_m, the trajectory of an expert is replaced by straight pieces. The
pieces meet in corners c_j, which smooth the waypoints:

    c_0 = θ*_0,   c_j = ½ (θ*_{w_j − 1} + θ*_{w_j + 1}) for 0 < j < m,   c_m = ½ (θ*_{w_m − 1} + θ*_{w_m})

On the piece from w_j to w_{j+1}, each parameter tensor v moves with the speed that it has on the stored trajectory:

    θ(t)_v = c_{j,v} + f_v(t) (c_{j+1,v} − c_{j,v})
    f_v(t) = Σ_{w_j < i ≤ t} ‖Δ_{i,v}‖ / Σ_{w_j < i ≤ w_{j+1}} ‖Δ_{i,v}‖,   Δ_{i,v} = θ*_{i,v} − θ*_{i−1,v}

for whole epochs t. Between them, f_v is linear in t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ast_lightning.config.schedule import Schedule
from ast_lightning.errors import ConfigurationError
from ast_lightning.trajectories.store import TrajectoryStore

LARGEST_CACHE = 2**30
"""Bytes of straightened trajectories that are kept in memory."""


class Straightened(NamedTuple):
    """The straightened trajectory of one expert.

    Attributes:
        corners: c_0 … c_m, ``[m + 1, P]`` float32.
        progress: f_v(t) − f_v(t − 1) for t = 1 … w_m, ``[w_m, tensors]`` float64; it sums to 1 over each piece.
    """

    corners: Tensor
    progress: Tensor


def check_waypoints(waypoints: Sequence[int], schedule: Schedule, given: object = None) -> None:
    """Reject waypoints of trajectories that do not hold every epoch up to the last one.

    Args:
        waypoints: the epochs at which pieces meet.
        schedule: the stored epochs.
        given: the value of the option that an error names; None: the waypoints.

    Raises:
        ConfigurationError: an epoch is not stored.
    """
    if schedule.every_n_epochs > 1:
        problem = (
            f"straight pieces need every epoch, but expert.every_n_epochs={schedule.every_n_epochs} leaves some out"
        )
        remedy = "set distill.waypoints=null, or train experts with expert.every_n_epochs=1"
        raise ConfigurationError("distill.waypoints", given or list(waypoints), problem, remedy)
    if waypoints[-1] > schedule.last:
        problem = f"every epoch is stored up to epoch {schedule.last} only"
        remedy = f"let the last waypoint be {schedule.last} or earlier"
        raise ConfigurationError("distill.waypoints", list(waypoints), problem, remedy)


class StraightenedTrajectories:
    """Reads windows of straightened trajectories from a store. The store is only read.

    The first window of an expert reads its w_m + 1 snapshots. After that, ``4 (m + 1) P`` bytes and one number for each
    epoch and tensor are kept, so that later windows read nothing. If all experts do not fit into ``LARGEST_CACHE``
    (1 GiB: 209 experts of 320,010 parameters with four waypoints), those that do not fit are read again for each of
    their windows. Windows cycle through all experts, so that replacing old entries by new ones would not help.

    Args:
        store: trajectories with a snapshot of every epoch.
        waypoints: at least two epochs in ascending order, the first 0. Trajectories end at the last one.

    Raises:
        ConfigurationError: the store does not hold every epoch up to the last waypoint.
    """

    def __init__(self, store: TrajectoryStore, waypoints: Sequence[int]) -> None:
        self.store = store
        self.waypoints = list(waypoints)
        self._sizes = torch.tensor([math.prod(shape) for _, shape in store.layout])
        self._kept: dict[int, Straightened] = {}
        check_waypoints(self.waypoints, store.schedule)

    def read_window(self, expert: int, start: float, length: int) -> Tensor:
        """θ(s), θ(s + 1), … θ(s + M); beyond the last waypoint, the last corner.

        Args:
            expert: the expert's index in the store.
            start: s, from 0 to the last waypoint.
            length: M.

        Returns:
            ``[M + 1, P]``, float32 on the CPU.

        Raises:
            ConfigurationError: a file is missing or damaged, or belongs to another expert or epoch.
        """
        straight = self._straightened(expert)
        return torch.stack([self._at(straight, start + offset) for offset in range(length + 1)])

    def _at(self, straight: Straightened, time: float) -> Tensor:
        last = self.waypoints[-1]
        if time >= last:
            return straight.corners[-1]
        piece = sum(time >= waypoint for waypoint in self.waypoints) - 1
        epoch = math.floor(time)
        whole, part = straight.progress[self.waypoints[piece] : epoch].sum(0), straight.progress[epoch]
        share = (whole + (time - epoch) * part).repeat_interleave(self._sizes)
        begin, end = straight.corners[piece], straight.corners[piece + 1]
        return (begin + share * (end.double() - begin)).float()

    def _straightened(self, expert: int) -> Straightened:
        if expert in self._kept:
            return self._kept[expert]
        straight = self._read(expert)
        size = straight.corners.nbytes + straight.progress.nbytes
        if size * (len(self._kept) + 1) <= LARGEST_CACHE:
            self._kept[expert] = straight
        return straight

    def _read(self, expert: int) -> Straightened:
        shares = self._shares()
        corners = torch.zeros(len(shares), int(self._sizes.sum()), dtype=torch.float32)
        steps: list[Tensor] = []
        before: Tensor | None = None
        for epoch in range(self.waypoints[-1] + 1):
            theta = self.store.read_snapshot(expert, epoch)
            for corner, of_epochs in zip(corners, shares, strict=True):
                if epoch in of_epochs:
                    corner += of_epochs[epoch] * theta
            if before is not None:
                parts = (theta.double() - before).split(self._sizes.tolist())
                steps.append(torch.stack([part.norm() for part in parts]))
            before = theta
        return Straightened(corners, self._progress(torch.stack(steps)))

    def _shares(self) -> list[dict[int, float]]:
        """For each corner, the epochs whose snapshots it is the mean of, with their weights."""
        last = self.waypoints[-1]
        inner = [{waypoint - 1: 0.5, waypoint + 1: 0.5} for waypoint in self.waypoints[1:-1]]
        return [{0: 1.0}, *inner, {last - 1: 0.5, last: 0.5}]

    def _progress(self, lengths: Tensor) -> Tensor:
        """The share of its piece that each step covers; a tensor that rests on a piece moves uniformly.

        Args:
            lengths: ‖Δ_{i,v}‖, ``[w_m, tensors]`` float64.
        """
        pieces = []
        for begin, end in pairwise(self.waypoints):
            piece = lengths[begin:end]
            piece = torch.where(piece.sum(0) > 0, piece, torch.ones_like(piece))
            pieces.append(piece / piece.sum(0))
        return torch.cat(pieces)
