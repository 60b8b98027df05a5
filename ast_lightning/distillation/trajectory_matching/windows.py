"""Trajectory windows: a reproducible stream of (expert, start epoch) and their snapshots."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ast_lightning.config.parts import resolve
from ast_lightning.config.schedule import Schedule
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.randomness import keyed_generator
from ast_lightning.trajectories import TrajectoryStore


class Window(NamedTuple):
    """A part of an expert trajectory that one student is matched with.

    Attributes:
        index: index of the window in the stream; part of the key of all random draws of its student.
        expert: the expert's index in the store.
        start_epoch: s.
        start: θ*_s, ``[P]`` float32.
        targets: θ*_{s+1} … θ*_{s+M}, ``[M, P]`` float32; ``[M / n, P]`` if the store holds every n-th epoch.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    expert: int
    start_epoch: int
    start: Tensor
    targets: Tensor


def choose_window(
    index: int, experts: Sequence[int], max_start_epoch: int, seed: int, every_n_epochs: int = 1
) -> tuple[int, int]:
    """(expert, start epoch) of window ``index``: a new permutation of the experts for each pass, s ~ U{0 … T⁺ − 1}.

    If every n-th epoch is stored, s is drawn uniformly from 0, n, 2n, … < T⁺.
    """
    turn, position = divmod(index, len(experts))
    order = torch.randperm(len(experts), generator=keyed_generator(seed, "expert order", turn))
    starts = -(-max_start_epoch // every_n_epochs)
    start = torch.randint(starts, (1,), generator=keyed_generator(seed, "start epoch", index))
    return experts[int(order[position])], every_n_epochs * int(start)


WindowSchedule = Callable[[int, Sequence[int], int, TrajectoryMatchingSettings, int], tuple[int, int]]
"""The type of ``distill.windows``, a pure function: (window index, experts, n if every n-th epoch is stored, settings,
seed) → (expert, start epoch s). s must be a stored epoch. The outer iteration is index //
``settings.windows_per_step``."""


def uniform(
    index: int, experts: Sequence[int], every_n_epochs: int, settings: TrajectoryMatchingSettings, seed: int
) -> tuple[int, int]:
    """Cycle through all experts in random order, s ~ U{0 … T⁺ − 1}; see :func:`choose_window`."""
    return choose_window(index, experts, settings.max_start_epoch, seed, every_n_epochs)


class TrajectoryWindows:
    """The endless sequence of windows that distillation trains on. Each window is a pure function of its index.

    Args:
        store: the trajectories.
        settings: M, T⁺ and the schedule of windows.
        seed: seed of the schedule.
        experts: which experts to use; None uses all complete ones.

    Raises:
        ConfigurationError: the store has no complete expert, or does not hold the epochs of these windows.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        settings: TrajectoryMatchingSettings,
        *,
        seed: int = 0,
        experts: Sequence[int] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.every_n_epochs = store.schedule.every_n_epochs
        self.seed = seed
        self.experts = list(experts) if experts is not None else store.experts()
        self._schedule: WindowSchedule = resolve(settings.windows, {"uniform": uniform}, "distill.windows")
        if not self.experts:
            raise ConfigurationError(
                "experts_dir",
                store.folder,
                "it has no complete expert",
                "let train_experts.py finish at least one",
            )
        check_window(settings.expert_epochs, settings.max_start_epoch, store.schedule)

    def stream(self, first: int, stride: int = 1) -> Iterator[Window]:
        """Endless iterator over windows ``first``, ``first + stride``, ….

        While a window is in use, a thread reads the next one. An error while reading a window is raised when that
        window is requested. The thread ends with the iterator.
        """
        with ThreadPoolExecutor(1, "next window") as reader:
            ahead = reader.submit(self.window, first)
            for index in itertools.count(first + stride, stride):
                window = ahead.result()
                ahead = reader.submit(self.window, index)
                yield window

    def window(self, index: int) -> Window:
        """Read window ``index``."""
        expert, start = self._schedule(index, self.experts, self.every_n_epochs, self.settings, self.seed)
        end = start + self.settings.expert_epochs
        if expert not in self.experts or not (self.store.schedule.holds(start) and self.store.schedule.holds(end)):
            problem = f"window {index} is expert {expert} from epoch {start}, which the trajectories do not contain"
            raise ConfigurationError("distill.windows", self.settings.windows, problem, "correct the schedule")
        snapshots = self.store.read_window(expert, start, self.settings.expert_epochs)
        return Window(index, expert, start, snapshots[0], snapshots[1:])


def check_window(expert_epochs: int, max_start_epoch: int, schedule: Schedule) -> None:
    """Reject windows that need epochs that are not stored.

    M must be a multiple of n, and the largest stored start epoch below T⁺, plus M, must not exceed the last stored
    epoch. If every epoch is stored, this means T⁺ + M − 1 ≤ E.

    Args:
        expert_epochs: M.
        max_start_epoch: T⁺.
        schedule: the stored epochs.

    Raises:
        ConfigurationError: a condition is violated; the message gives the largest valid value.
    """
    every = schedule.every_n_epochs
    if expert_epochs % every:
        nearest = max(every, expert_epochs - expert_epochs % every)
        raise ConfigurationError(
            "distill.expert_epochs",
            expert_epochs,
            f"it is not a multiple of expert.every_n_epochs={every}, and the trajectories hold no epochs in between",
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
