"""Trajectory windows: which expert, from which epoch, in a reproducible stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator
from ast_lightning.trajectories import TrajectoryStore


class Window(NamedTuple):
    """A piece of an expert trajectory for one student to follow.

    Attributes:
        index: number of the window in the stream; keys every draw of the student that follows it.
        expert: the expert's index in the store.
        start_epoch: s.
        start: θ*_s, ``[P]`` float32.
        targets: θ*_{s+1} … θ*_{s+M}, ``[M, P]`` float32.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a window
    expert: int
    start_epoch: int
    start: Tensor
    targets: Tensor


def choose_window(index: int, experts: Sequence[int], max_start_epoch: int, seed: int) -> tuple[int, int]:
    """(expert, start epoch) of window ``index``: a fresh order of all experts each pass, s ~ U{0 … T⁺ − 1}."""
    turn, position = divmod(index, len(experts))
    order = torch.randperm(len(experts), generator=keyed_generator(seed, "expert order", turn))
    start = torch.randint(max_start_epoch, (1,), generator=keyed_generator(seed, "start epoch", index))
    return experts[int(order[position])], int(start)


class TrajectoryWindows(IterableDataset[Window]):
    """The endless stream of windows that distillation trains on. Rank r of R takes windows r, r + R, …

    Args:
        store: the trajectories.
        expert_epochs: M.
        max_start_epoch: T⁺, exclusive bound on the start epoch.
        seed: of the stream.
        experts: which experts to use; None takes all complete ones.

    Raises:
        ConfigurationError: the store has no complete expert, or a window would reach beyond the trajectories.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        *,
        expert_epochs: int,
        max_start_epoch: int,
        seed: int = 0,
        experts: Sequence[int] | None = None,
    ) -> None:
        self.store = store
        self.expert_epochs = expert_epochs
        self.max_start_epoch = max_start_epoch
        self.seed = seed
        self.experts = list(experts) if experts is not None else store.experts()
        self.next_index = 0
        self.stride = 1
        if not self.experts:
            raise ConfigurationError(
                "experts_dir",
                store.folder,
                "it has no complete expert",
                "let train_experts.py finish at least one",
            )
        check_window(expert_epochs, max_start_epoch, store.epochs)

    def start_at(self, step: int, rank: int = 0, world_size: int = 1) -> None:
        """Let the next iteration begin with the window that this rank takes at outer iteration ``step``."""
        self.next_index = step * world_size + rank
        self.stride = world_size

    def __iter__(self) -> Iterator[Window]:
        index = self.next_index
        while True:
            yield self.window(index)
            index += self.stride

    def window(self, index: int) -> Window:
        """Read window ``index`` of the stream."""
        expert, start = choose_window(index, self.experts, self.max_start_epoch, self.seed)
        snapshots = self.store.read_window(expert, start, self.expert_epochs)
        return Window(index, expert, start, snapshots[0], snapshots[1:])


def check_window(expert_epochs: int, max_start_epoch: int, epochs: int) -> None:
    """Refuse windows that reach beyond the trajectory: T⁺ + M − 1 must not exceed E.

    Raises:
        ConfigurationError: with the largest start epoch that works.
    """
    last = max_start_epoch + expert_epochs - 1
    if last > epochs:
        largest = epochs - expert_epochs + 1
        lower = f"set distill.max_start_epoch={largest} or lower" if largest >= 1 else "lower distill.expert_epochs"
        raise ConfigurationError(
            "distill.max_start_epoch",
            max_start_epoch,
            f"a window of distill.expert_epochs={expert_epochs} epochs would reach epoch {last}, "
            f"but the trajectories end at expert.epochs={epochs}",
            f"{lower}, or train experts for more epochs",
        )
