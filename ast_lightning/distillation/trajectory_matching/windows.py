"""Trajectory windows: which expert, from which epoch, in a reproducible stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ast_lightning.config.schedule import Schedule
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
        targets: θ*_{s+1} … θ*_{s+M}, ``[M, P]`` float32; where a store holds every n-th epoch, ``[M / n, P]``.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a window
    expert: int
    start_epoch: int
    start: Tensor
    targets: Tensor


def choose_window(
    index: int, experts: Sequence[int], max_start_epoch: int, seed: int, every_n_epochs: int = 1
) -> tuple[int, int]:
    """(expert, start epoch) of window ``index``: a fresh order of all experts each pass, s ~ U{0 … T⁺ − 1}.

    Where every n-th epoch is stored, s is drawn uniformly among those: 0, n, 2n, … < T⁺.
    """
    turn, position = divmod(index, len(experts))
    order = torch.randperm(len(experts), generator=keyed_generator(seed, "expert order", turn))
    starts = -(-max_start_epoch // every_n_epochs)
    start = torch.randint(starts, (1,), generator=keyed_generator(seed, "start epoch", index))
    return experts[int(order[position])], every_n_epochs * int(start)


class TrajectoryWindows(IterableDataset[Window]):
    """The endless stream of windows that distillation trains on. Rank r of R takes windows r, r + R, …

    While a window is in use, a thread reads the next one. What goes wrong with a window is raised where that window is
    asked for, and no earlier. The thread ends with the iteration.

    Args:
        store: the trajectories.
        expert_epochs: M.
        max_start_epoch: T⁺, exclusive bound on the start epoch.
        seed: of the stream.
        experts: which experts to use; None takes all complete ones.

    Raises:
        ConfigurationError: the store has no complete expert, or does not hold the epochs of such windows.
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
        self.every_n_epochs = store.schedule.every_n_epochs
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
        check_window(expert_epochs, max_start_epoch, store.schedule)

    def start_at(self, step: int, rank: int = 0, world_size: int = 1, windows_per_step: int | None = None) -> None:
        """Let the next iteration begin with the first window that this rank takes at outer iteration ``step``.

        Args:
            step: outer iteration, counted from 0.
            rank: r.
            world_size: R.
            windows_per_step: W of an outer iteration, a multiple of R; None takes R.
        """
        self.next_index = step * (windows_per_step or world_size) + rank
        self.stride = world_size

    def __iter__(self) -> Iterator[Window]:
        index, stride = self.next_index, self.stride
        with ThreadPoolExecutor(1, "next window") as reader:
            ahead = reader.submit(self.window, index)
            while True:
                window = ahead.result()
                index += stride
                ahead = reader.submit(self.window, index)
                yield window

    def window(self, index: int) -> Window:
        """Read window ``index`` of the stream."""
        expert, start = choose_window(index, self.experts, self.max_start_epoch, self.seed, self.every_n_epochs)
        snapshots = self.store.read_window(expert, start, self.expert_epochs)
        return Window(index, expert, start, snapshots[0], snapshots[1:])


def check_window(expert_epochs: int, max_start_epoch: int, schedule: Schedule) -> None:
    """Refuse windows that the stored epochs do not hold.

    M must be a multiple of n, and the last start below T⁺ plus M must not exceed the last epoch; with every epoch
    stored: T⁺ + M − 1 ≤ E.

    Args:
        expert_epochs: M.
        max_start_epoch: T⁺.
        schedule: the stored epochs.

    Raises:
        ConfigurationError: with the largest value that works.
    """
    every = schedule.every_n_epochs
    if expert_epochs % every:
        nearest = max(every, expert_epochs - expert_epochs % every)
        raise ConfigurationError(
            "distill.expert_epochs",
            expert_epochs,
            f"it is no multiple of expert.every_n_epochs={every}, and the trajectories hold no epochs in between",
            f"set distill.expert_epochs={nearest}, or train experts with expert.every_n_epochs=1",
        )
    last = (max_start_epoch - 1) // every * every + expert_epochs
    if last > schedule.last:
        largest = schedule.last - expert_epochs + every
        lower = f"set distill.max_start_epoch={largest} or lower" if largest >= 1 else "lower distill.expert_epochs"
        ends, remedy = f"expert.epochs={schedule.epochs}", "train experts for more epochs"
        if schedule.max_epoch is not None and schedule.max_epoch < schedule.epochs:
            ends, remedy = f"expert.max_epoch={schedule.max_epoch}", "train experts with a larger expert.max_epoch"
        raise ConfigurationError(
            "distill.max_start_epoch",
            max_start_epoch,
            f"a window of distill.expert_epochs={expert_epochs} epochs would reach epoch {last}, "
            f"but the trajectories end at {ends}",
            f"{lower}, or {remedy}",
        )
