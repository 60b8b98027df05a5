"""The matching loss, its intermediate terms, and the balance of the inner loop (AST, arXiv 2310.10541)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class MatchingLoss(NamedTuple):
    """Scalars of one window.

    Attributes:
        total: the loss L that is differentiated.
        parts: the weighted term of each matched expert epoch by its offset 1 … M in the window, detached.
    """

    total: Tensor
    parts: dict[int, Tensor]


def matching_steps(syn_steps: int, expert_epochs: int, intermediate: str, every_n_epochs: int = 1) -> dict[int, int]:
    """Which expert epoch (offset in the window) each inner step is matched with: {k: i}.

    The last step K is matched with epoch M; with intermediate matching, step (K // M) · i with epoch i < M, for the
    stored epochs i = n, 2n, …

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


def matching_loss(
    matched: Mapping[int, Tensor], steps: Mapping[int, int], start: Tensor, targets: Tensor, intermediate: str
) -> MatchingLoss:
    """L = Σ_i β_i ‖θ_{k_i} − θ*_{s+i}‖² / ‖θ_0 − θ*_{s+i}‖² over the matched epochs, β_M = 1.

    Args:
        matched: student parameters ``[P]`` by inner step, from ``unroll``.
        steps: {inner step: epoch offset}, from :func:`matching_steps`; its last offset is M.
        start: θ_0 ``[P]``, perturbed where the student started from a perturbed point.
        targets: θ*_{s+n}, θ*_{s+2n}, … θ*_{s+M}, ``[M / n, P]``; every epoch's, ``[M, P]``, where n = 1.
        intermediate: ``none``, ``aggregate`` or ``adaptive``.
    """
    expert_epochs = max(steps.values())
    every_n_epochs = expert_epochs // len(targets)
    parts: dict[int, Tensor] = {}
    for step, offset in steps.items():
        target = targets[offset // every_n_epochs - 1]
        distance = (matched[step] - target).square().sum() / (start - target).square().sum()
        parts[offset] = intermediate_weight(offset, expert_epochs, intermediate) * distance
    total = sum(parts.values(), start=parts[expert_epochs].new_zeros(()))
    return MatchingLoss(total, {offset: part.detach() for offset, part in parts.items()})


def balance_factor(start_epoch: int, max_start_epoch: int) -> float:
    """c(s), the scale of the inner loss for a window that starts at epoch s, with h = T⁺ // 2.

    s ≥ h: log₅(s − h + 8); s < h: 1 / log₅(h − s + 8).

    >>> round(balance_factor(10, 20), 4), round(balance_factor(0, 20), 4)
    (1.292, 0.5568)
    """
    half = max_start_epoch // 2
    if start_epoch >= half:
        return math.log(start_epoch - half + 8, 5)
    return 1 / math.log(half - start_epoch + 8, 5)
