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
from ast_lightning.trajectories.waypoints import StraightenedTrajectories, check_waypoints


class Window(NamedTuple):
    """A part of an expert trajectory that one student is matched with.

    Attributes:
        index: index of the window in the stream; part of the key of all random draws of its student.
        expert: the expert's index in the store.
        start_epoch: s; a whole number, except with ``distill.waypoints``.
        start: θ*_s, ``[P]`` float32.
        targets: θ*_{s+1} … θ*_{s+M}, ``[M, P]`` float32; ``[M / n, P]`` if the store holds every n-th epoch. With
            waypoints, they are those of the straightened trajectory, and epochs beyond its end E count as E.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    expert: int
    start_epoch: float
    start: Tensor
    targets: Tensor


def choose_window(
    index: int,
    experts: Sequence[int],
    max_start_epoch: int,
    seed: int,
    every_n_epochs: int = 1,
    min_start_epoch: int = 0,
) -> tuple[int, int]:
    """(expert, start epoch) of window ``index``: a new permutation of the experts for each pass, s ~ U{T⁻ … T⁺ − 1}.

    If every n-th epoch is stored, s is drawn uniformly from the multiples of n among them.
    """
    turn, position = divmod(index, len(experts))
    order = torch.randperm(len(experts), generator=keyed_generator(seed, "expert order", turn))
    starts = stored_starts(min_start_epoch, max_start_epoch, every_n_epochs)
    start = torch.randint(len(starts), (1,), generator=keyed_generator(seed, "start epoch", index))
    return experts[int(order[position])], starts[int(start)]


def stored_starts(min_start_epoch: int, bound: int, every_n_epochs: int) -> range:
    """The possible start epochs: the multiples of n in T⁻ … bound − 1."""
    return range(-(-min_start_epoch // every_n_epochs) * every_n_epochs, bound, every_n_epochs)


WindowSchedule = Callable[[int, Sequence[int], int, TrajectoryMatchingSettings, int], tuple[int, float]]
"""The type of ``distill.windows``, a pure function: (window index, experts, n if every n-th epoch is stored, settings,
seed) → (expert, start epoch s). s must be a stored epoch, or with ``distill.waypoints`` any real number before the last
waypoint. The outer iteration is index // ``settings.windows_per_step``."""


def uniform(
    index: int, experts: Sequence[int], every_n_epochs: int, settings: TrajectoryMatchingSettings, seed: int
) -> tuple[int, float]:
    """Cycle through all experts in random order, s ~ U{T⁻ … U − 1}; see :func:`choose_window`.

    U is T⁺, or grows from T₀ to T⁺; see :meth:`TrajectoryMatchingSettings.start_bound`. With ``distill.waypoints``, s
    is a real number, s ~ U[T⁻, U).
    """
    lowest, bound = settings.min_start_epoch, settings.start_bound(index // settings.windows_per_step)
    expert, start = choose_window(index, experts, bound, seed, every_n_epochs, lowest)
    if settings.waypoints is None:
        return expert, start
    # with the dtype given, because torch's default changes with the precision, at any time for the reading thread
    share = torch.rand(1, generator=keyed_generator(seed, "real start", index), dtype=torch.float32)
    return expert, lowest + (bound - lowest) * float(share)


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
        waypoints = settings.waypoints_of(store.schedule.last)
        self._straight = StraightenedTrajectories(store, waypoints) if waypoints else None
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
        check_windows(settings, store.schedule)

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
        if expert not in self.experts or not self._holds(start):
            problem = f"window {index} is expert {expert} from epoch {start}, which the trajectories do not contain"
            raise ConfigurationError("distill.windows", self.settings.windows, problem, "correct the schedule")
        length = self.settings.expert_epochs
        if self._straight:
            snapshots = self._straight.read_window(expert, start, length)
        else:
            snapshots = self.store.read_window(expert, int(start), length)
        return Window(index, expert, start, snapshots[0], snapshots[1:])

    def _holds(self, start: float) -> bool:
        """Whether a window can start there."""
        if self._straight:
            return 0 <= start < self._straight.waypoints[-1]
        schedule = self.store.schedule
        return schedule.holds(start) and schedule.holds(start + self.settings.expert_epochs)


def check_windows(settings: TrajectoryMatchingSettings, schedule: Schedule) -> None:
    """Reject settings with windows that need epochs that are not stored, or with no start epoch at all.

    T⁻ < T₀ ≤ T⁺ must hold with a stored epoch in T⁻ … T₀ − 1, and :func:`check_window`. With waypoints, every epoch
    must be stored, and T⁺ must not exceed the last waypoint.

    Args:
        settings: T⁻, T₀, T⁺, M and the waypoints.
        schedule: the stored epochs.

    Raises:
        ConfigurationError: a condition is violated.
    """
    every, bound, first = schedule.every_n_epochs, settings.max_start_epoch, settings.first_start_bound
    if waypoints := settings.waypoints_of(schedule.last):
        check_waypoints(waypoints, schedule, settings.waypoints)
        if bound > (last := waypoints[-1]):
            problem = f"the straightened trajectories end at the last waypoint, epoch {last}"
            raise settings.refused("max_start_epoch", problem, f"set distill.max_start_epoch={last} or lower")
    else:
        check_window(settings.expert_epochs, bound, schedule)
    if first is not None and first > bound:
        problem = f"it is larger than distill.max_start_epoch={bound}, the bound that it rises to"
        raise settings.refused("first_start_bound", problem, f"set distill.first_start_bound={bound} or lower")
    name, lowest = ("max_start_epoch", bound) if first is None else ("first_start_bound", first)
    if not stored_starts(settings.min_start_epoch, lowest, every):
        stored = f"expert.every_n_epochs={every} stores no" if every > 1 else "there is no"
        problem = f"{stored} epoch from this one on below distill.{name}={lowest}, so no window could start"
        raise settings.refused("min_start_epoch", problem, f"lower it, or raise distill.{name}")


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
