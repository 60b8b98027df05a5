"""The matching loss: distance between student and expert at the end of a window (MTT) and at intermediate epochs (AST),
or between the nearest step of the student and the end of the window (ATT).

References: MTT, CVPR 2022; AST, arXiv 2310.10541; ATT, ECCV 2024; for entries left out, PAD, 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation.trajectory_matching.adjoint import Steps


class MatchingLoss(NamedTuple):
    """Scalars of one window.

    Attributes:
        total: the loss L, which is differentiated.
        parts: its terms, detached, by the matched expert epoch (offset 1 … M in the window).
    """

    total: Tensor
    parts: dict[int, Tensor]


class Guide(NamedTuple):
    """The parameters that the student of one window is compared with.

    Attributes:
        start: θ_0 ``[P]``, the initial parameters of the student, including the perturbation.
        targets: θ*_{s+n}, θ*_{s+2n}, … θ*_{s+M}, ``[M / n, P]``; ``[M, P]`` if every epoch is stored (n = 1).
        start_epoch: s; a whole number without ``distill.waypoints``.
        iteration: the outer iteration, counted from 0.
    """

    start: Tensor
    targets: Tensor
    start_epoch: float = 0
    iteration: int = 0


class Match(Protocol):
    """The comparison of one student with its window.

    Attributes:
        match_at: the steps k whose θ_k enter the loss; or a ``StepChooser``, which selects them after seeing every θ_k.
    """

    match_at: Steps

    def loss(self, matched: Mapping[int, Tensor]) -> MatchingLoss:
        """The loss, given θ_k ``[P]`` by step k."""


Matching = Callable[[Guide, TrajectoryMatchingSettings], Match]
"""The type of ``distill.matching``: builds the comparison of one window."""


class TrajectoryMatch:
    """The loss of MTT and, with intermediate terms, of AST; see :func:`matching_loss` and :func:`matching_steps`.

    Args:
        guide: start and targets.
        settings: K, M, ``intermediate`` and ``drop_ratio``.
    """

    def __init__(self, guide: Guide, settings: TrajectoryMatchingSettings) -> None:
        self._guide, self._intermediate, self._drop_ratio = guide, settings.intermediate, settings.drop_ratio
        every_n_epochs = settings.expert_epochs // len(guide.targets)
        self._steps = matching_steps(settings.syn_steps, settings.expert_epochs, settings.intermediate, every_n_epochs)
        self.match_at: Steps = self._steps

    def loss(self, matched: Mapping[int, Tensor]) -> MatchingLoss:
        start, targets = self._guide.start, self._guide.targets
        return matching_loss(matched, self._steps, start, targets, self._intermediate, self._drop_ratio)


class NearestMatch:
    """The loss of ATT (ECCV 2024): that of MTT at the step of the student that is nearest to the target.

    With k* = argmin ‖θ_k − θ*_{s+M}‖₁ over k = 1 … K, the last one of ties, L = ‖θ_{k*} − θ*_{s+M}‖² / ‖θ_0 −
    θ*_{s+M}‖². The choice of k* is not differentiated, and the steps after k* get no gradient.

    Args:
        guide: start and targets, of which the last one is used.
        settings: K, M and ``drop_ratio``.
    """

    def __init__(self, guide: Guide, settings: TrajectoryMatchingSettings) -> None:
        self._start, self._target = guide.start, guide.targets[-1]
        self._settings = settings
        self._distances: list[Tensor] = []
        self.match_at: Steps = self

    def see(self, step: int, theta: Tensor) -> None:
        self._distances.append((theta - self._target).abs().sum())

    def chosen(self) -> list[int]:
        return [len(self._distances) - int(torch.stack(self._distances).flip(0).argmin())]

    def loss(self, matched: Mapping[int, Tensor]) -> MatchingLoss:
        (theta,) = matched.values()
        distance = relative_distance(theta, self._target, self._start, self._settings.drop_ratio)
        return MatchingLoss(distance, {self._settings.expert_epochs: distance.detach()})


MATCHING: dict[str, Matching] = {"trajectory": TrajectoryMatch, "nearest": NearestMatch}


def matching_steps(syn_steps: int, expert_epochs: int, intermediate: str, every_n_epochs: int = 1) -> dict[int, int]:
    """The matched expert epoch (offset i in the window) of each matched inner step k: {k: i}.

    The last step K is matched with epoch M. With intermediate matching, step (K // M) · i is also matched with epoch
    i < M, for the stored epochs i = n, 2n, …

    Args:
        syn_steps: K.
        expert_epochs: M.
        intermediate: ``none``, ``aggregate`` or ``adaptive``.
        every_n_epochs: n, which divides M.

    >>> matching_steps(20, 3, "aggregate")
    {6: 1, 12: 2, 20: 3}
    >>> matching_steps(20, 3, "none")
    {20: 3}
    >>> matching_steps(20, 4, "aggregate", every_n_epochs=2)
    {10: 2, 20: 4}
    """
    steps: dict[int, int] = {}
    if intermediate != "none":
        steps = {
            syn_steps // expert_epochs * offset: offset
            for offset in range(every_n_epochs, expert_epochs, every_n_epochs)
        }
    return {**steps, syn_steps: expert_epochs}


def intermediate_weight(offset: int, expert_epochs: int, intermediate: str) -> float:
    """β_i: 1 for the last match and for ``aggregate``, i / M for ``adaptive``."""
    return offset / expert_epochs if intermediate == "adaptive" and offset < expert_epochs else 1.0


def relative_distance(theta: Tensor, target: Tensor, start: Tensor, drop_ratio: float = 0.0) -> Tensor:
    """‖θ_k − θ*‖² / ‖θ_0 − θ*‖² over the entries that are kept.

    The ⌊drop_ratio · P⌋ entries with the smallest (θ_k − θ*)², the first ones of ties, are left out of both norms (PAD,
    2024). The choice is not differentiated.

    Args:
        theta: θ_k ``[P]``.
        target: θ* ``[P]``.
        start: θ_0 ``[P]``.
        drop_ratio: in [0, 1).

    >>> theta, target, start = torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([5.0, 6.0])
    >>> relative_distance(theta, target, start, drop_ratio=0.5).item()
    0.25
    """
    apart, initial = (theta - target).square(), (start - target).square()
    if drop := math.floor(drop_ratio * len(theta)):
        kept = apart.detach().argsort(stable=True)[drop:]
        apart, initial = apart[kept], initial[kept]
    return apart.sum() / initial.sum()


def matching_loss(
    matched: Mapping[int, Tensor],
    steps: Mapping[int, int],
    start: Tensor,
    targets: Tensor,
    intermediate: str,
    drop_ratio: float = 0.0,
) -> MatchingLoss:
    """L = Σ_i β_i ‖θ_{k_i} − θ*_{s+i}‖² / ‖θ_0 − θ*_{s+i}‖² over the matched epochs, β_M = 1.

    Args:
        matched: student parameters ``[P]`` by inner step, from ``unroll``.
        steps: {inner step: epoch offset}, from :func:`matching_steps`; its last offset is M.
        start: θ_0 ``[P]``, the initial parameters of the student, including the perturbation.
        targets: θ*_{s+n}, θ*_{s+2n}, … θ*_{s+M}, ``[M / n, P]``; ``[M, P]`` if every epoch is stored (n = 1).
        intermediate: ``none``, ``aggregate`` or ``adaptive``.
        drop_ratio: share of the entries that each term leaves out, see :func:`relative_distance`.
    """
    expert_epochs = max(steps.values())
    every_n_epochs = expert_epochs // len(targets)
    parts: dict[int, Tensor] = {}
    for step, offset in steps.items():
        distance = relative_distance(matched[step], targets[offset // every_n_epochs - 1], start, drop_ratio)
        parts[offset] = intermediate_weight(offset, expert_epochs, intermediate) * distance
    total = sum(parts.values(), start=parts[expert_epochs].new_zeros(()))
    return MatchingLoss(total, {offset: part.detach() for offset, part in parts.items()})


def balance_factor(start_epoch: float, max_start_epoch: int) -> float:
    """c(s), the scale of the inner loss for a window that starts at epoch s, with h = T⁺ // 2.

    s ≥ h: log₅(s − h + 8); s < h: 1 / log₅(h − s + 8).

    >>> round(balance_factor(10, 20), 4), round(balance_factor(0, 20), 4)
    (1.292, 0.5568)
    """
    half = max_start_epoch // 2
    if start_epoch >= half:
        return math.log(start_epoch - half + 8, 5)
    return 1 / math.log(half - start_epoch + 8, 5)
