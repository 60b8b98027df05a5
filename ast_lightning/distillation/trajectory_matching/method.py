"""Trajectory matching (MTT, CVPR 2022) with the extensions of AST (arXiv 2310.10541)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ast_lightning.compilation import Compilation
from ast_lightning.config.parts import resolve
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.method import Context, Method
from ast_lightning.distillation.synthetic_set import BatchDraw, SyntheticImages, SyntheticSet
from ast_lightning.distillation.textures import images_or_textures
from ast_lightning.distillation.trajectory_matching.adjoint import StepBatch
from ast_lightning.distillation.trajectory_matching.inner import InnerProblem
from ast_lightning.distillation.trajectory_matching.matching import MATCHING, Guide, Matching, balance_factor
from ast_lightning.distillation.trajectory_matching.perturbation import perturb
from ast_lightning.distillation.trajectory_matching.split import SplitProblem, check_network
from ast_lightning.distillation.trajectory_matching.unroll import unroll
from ast_lightning.distillation.trajectory_matching.windows import TrajectoryWindows, Window, check_windows
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork, NetworkFactory, ParameterLayout, has_batch_of_one
from ast_lightning.randomness import keyed_generator
from ast_lightning.storage.inspection import count
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.lineage import describe_experts, experts_checksum

PASSES_OF_A_STEP = 11
"""Operations of an inner step, including its backward pass, in forward passes."""

Perturbation = Callable[[Tensor, ParameterLayout, torch.Generator, TrajectoryMatchingSettings], Tensor]
"""The type of ``distill.perturbation``: (θ*_s ``[P]``, names and shapes of its tensors, CPU generator, settings) →
θ_0."""
Balance = Callable[[float, TrajectoryMatchingSettings], float]
"""The type of ``distill.balance``: (start epoch s, settings) → c(s), the scale of the inner loss."""


class TrajectoryMatching(Method):
    """Matches the unrolled training of students with windows of expert trajectories. Each work item is a window.

    The windows of an iteration, or the rows of every inner batch, are divided among the ranks (``distill.split``).

    Args:
        settings: the options.
        network: builds the student, with the architecture of the experts.
        store: the trajectories.
        experts: which experts to use; None uses all complete ones.
        augmentation: Siamese augmentation of inner batches; None disables it.
        seed: seed of all random draws.
        compilation: whether the student's derivatives are compiled; None does not compile.

    Logged, as means over the windows of an iteration: ``train/loss``, ``train/match_<i>`` (the weighted term of expert
    epoch s + i), ``train/start_distance`` ‖θ_0 − θ*_{s+M}‖, ``train/start_epoch``, and ``train/matched_step``, the last
    step that enters the loss, if the loss selects it (``distill.matching=nearest``).

    Raises:
        ConfigurationError: the store does not hold these windows, or the network cannot be used as a student.
    """

    Settings = TrajectoryMatchingSettings
    settings: TrajectoryMatchingSettings

    def __init__(
        self,
        settings: TrajectoryMatchingSettings,
        network: NetworkFactory,
        store: TrajectoryStore,
        *,
        experts: Sequence[int] | None = None,
        augmentation: SiameseAugmentation | None = None,
        seed: int = 0,
        compilation: Compilation | None = None,
    ) -> None:
        self.settings = settings
        self.windows = TrajectoryWindows(store, settings, seed=seed, experts=experts)
        self._network = network
        self._student = FunctionalNetwork(network)
        self._choice = compilation
        self._problem = InnerProblem(self._student, compilation)
        self._augmentation = augmentation if settings.augment and augmentation else SiameseAugmentation(None)
        self._seed = seed
        self._ranks = 1
        self._matching: Matching = resolve(settings.matching, MATCHING, "distill.matching")
        self._perturb = _perturbation(settings)
        self._balance = _balance(settings)

    @classmethod
    def check(cls, settings: TrajectoryMatchingSettings, context: Context) -> None:
        settings.windows_of_a_device(context.ranks)
        if context.schedule is not None:
            check_windows(settings, context.schedule)

    @classmethod
    def build(cls, settings: TrajectoryMatchingSettings, context: Context) -> TrajectoryMatching:
        store, experts = context.experts()
        if settings.splits_batches(context.ranks):
            check_network(context.network)
        passes = forward_passes(settings, context.data.num_classes * settings.ipc, context.ranks)
        never = "distill.engine=autograd is not compiled" if settings.engine == "autograd" else None
        method = cls(
            settings,
            context.network,
            store,
            experts=experts,
            augmentation=context.data.augmentation,
            seed=context.seed,
            compilation=context.choose_compilation(passes, never),
        )
        method._ranks = context.ranks
        return method

    @classmethod
    def inputs(cls, settings: TrajectoryMatchingSettings, context: Context) -> dict[str, Any]:
        store, experts = context.open_experts()
        return {"experts": len(experts), "trajectories": experts_checksum(store, experts)}

    def lineage(self) -> dict[str, Any]:
        return {"trajectories": describe_experts(self.windows.store, self.windows.experts)}

    def announce(self) -> str:
        settings = self.settings
        windows = f" over {settings.windows_per_step} windows" if settings.windows_per_step > 1 else ""
        text = (
            f"{count(settings.max_steps, 'iteration')}{windows} of {count(settings.syn_steps, 'inner step')}, from "
            f"{count(len(self.windows.experts), 'expert')} in {self.windows.store.folder}"
        )
        if self._ranks == 1:
            return text
        if not settings.splits_batches(self._ranks):
            return f"{text}; {self._ranks} devices share the windows"
        text = f"{text}; {self._ranks} devices share the rows of each inner batch"
        faster = f" (faster: distill.windows_per_step={self._ranks}, one window for each device)"
        return text + faster if settings.split == "auto" else text

    def synthetic_set(self, images: Tensor, labels: Tensor, learning_rate: float) -> SyntheticSet:
        self.settings.check_batch(len(images))
        options = {"alpha": self.settings.alpha, "label_kind": self.settings.labels}
        synthetic = images_or_textures(self.settings, images, labels, learning_rate, **options)
        size, (_, _, height, width) = self.settings.batch_syn or len(images), synthetic.shape
        alone = self.settings.crops == 1 and has_batch_of_one(len(images), size)
        self._student.require_pure(images[0, :, :height, :width], batch=1 if alone else 2)
        return synthetic

    @property
    def compilation(self) -> Compilation:  # type: ignore[override]
        """Whether the student's derivatives are compiled, and why; off with the reason once compilation has failed."""
        return self._problem.compilation

    def start(self, device: torch.device, dtype: torch.dtype) -> None:
        self._student.to(device, dtype)

    def work(self, step: int, rank: int, ranks: int) -> Iterator[list[Window]]:
        settings, first, stride = self.settings, rank, ranks
        if ranks > 1 and settings.splits_batches(ranks):  # all ranks follow the same windows
            check_network(self._network)
            self._problem = SplitProblem(self._student, self._choice)
            first, stride = 0, 1
        stream = self.windows.stream(step * settings.windows_per_step + first, stride)
        count = settings.windows_of_a_device(ranks)
        while True:
            yield list(islice(stream, count))

    def loss(self, item: Window, synthetic: SyntheticSet) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        *tensors, learning_rate = synthetic.tensors()
        generator = keyed_generator(self._seed, "perturbation", item.index)
        start = self._perturb(item.start.to(tensors[0]), self._student.layout, generator, settings)
        targets = item.targets.to(tensors[0])
        if settings.labels == "teacher":
            tensors[1] = self._teacher_labels(targets[-1], tensors[0], synthetic)
        iteration = item.index // settings.windows_per_step
        match = self._matching(Guide(start, targets, item.start_epoch, iteration), settings)
        if isinstance(steps := match.match_at, Collection) and not all(
            1 <= each <= settings.syn_steps for each in steps
        ):
            problem = f"its match_at is {[*steps]}, and the student has the steps 1 … {settings.syn_steps}"
            raise ConfigurationError("distill.matching", settings.matching, problem, "correct it")
        matched = unroll(
            self._problem,
            start,
            tuple(tensors),
            self.inner_batches(item.index, synthetic),
            learning_rate,
            steps=settings.syn_steps,
            momentum=settings.momentum,
            loss_scale=self._balance(item.start_epoch, settings),
            match_at=steps,
            engine=settings.engine,
            recompute=settings.recompute,
        )
        loss = match.loss(matched)
        measured = {"train/loss": loss.total.detach()}
        measured |= {f"train/match_{offset}": part for offset, part in loss.parts.items()}
        measured["train/start_distance"] = (start - targets[-1]).norm()
        measured["train/start_epoch"] = start.new_tensor(item.start_epoch)
        if not isinstance(steps, Collection):
            measured["train/matched_step"] = start.new_tensor(max(matched))
        return loss.total, measured

    def accepts(self, means: Mapping[str, Tensor]) -> bool | None:
        """Whether the loss is at most ``distill.max_loss`` (DATM, ICLR 2024); None without such a bound."""
        return None if self.settings.max_loss is None else bool(means["train/loss"] <= self.settings.max_loss)

    @torch.no_grad()
    def _teacher_labels(self, theta: Tensor, images: Tensor, synthetic: SyntheticSet) -> Tensor:
        """softmax of the logits of the current images under θ*_{s+M} (TESLA, ICML 2023), ``[N, classes]``.

        The set keeps them if the update of the iteration is accepted. All ranks compute the labels of all images.
        """
        assert isinstance(synthetic, SyntheticImages)
        parts = images.split(self.settings.batch_syn or len(images))
        labels = torch.cat([self._student(theta, part).softmax(1) for part in parts])
        synthetic.propose(labels)
        return labels

    def inner_batches(self, window_index: int, synthetic: SyntheticSet) -> StepBatch:
        """The augmented batches of the inner steps for window ``window_index``.

        Batches are chunks of ``batch_syn`` items of random permutations of the set. If ``batch_syn`` does not divide
        the set, the smaller chunk comes first, as in the published code.
        """
        count, *_, height, width = synthetic.shape
        size = self.settings.batch_syn or count
        chunks_of_turn: dict[int, list[Tensor]] = {}

        def batch(step: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            turn, position = divmod(step, math.ceil(count / size))
            if turn not in chunks_of_turn:
                generator = keyed_generator(self._seed, "inner order", window_index, turn)
                chunks_of_turn.clear()
                chunks_of_turn[turn] = list(reversed(torch.randperm(count, generator=generator).split(size)))
            rows = chunks_of_turn[turn][position]
            images, labels = synthetic.batch(BatchDraw(rows, (self._seed, "inner draw", window_index, step)), *tensors)
            generator = keyed_generator(self._seed, "inner augmentation", window_index, step)
            draw = self._augmentation.draw(len(images), (height, width), generator)
            return self._augmentation.apply(images, draw), labels

        return batch


def forward_passes(settings: TrajectoryMatchingSettings, images: int, ranks: int) -> int:
    """The work of a run per device, in forward passes of one image, for ``images`` images or canvases."""
    steps = settings.max_steps * settings.windows_of_a_device(ranks) * settings.syn_steps
    return steps * (settings.batch_syn or images) * settings.crops * PASSES_OF_A_STEP


def _perturbation(settings: TrajectoryMatchingSettings) -> Perturbation:
    """The function for ``distill.perturbation``; a number is η of AST's weight perturbation."""
    scale = settings.perturbation
    if isinstance(scale, int | float):
        return lambda theta, layout, generator, settings: perturb(theta, layout, scale, generator)
    found: Perturbation = resolve(scale, {}, "distill.perturbation")
    return found


def _balance(settings: TrajectoryMatchingSettings) -> Balance:
    """The function for ``distill.balance``: AST's c(s) if it is true, 1 if it is false."""
    if settings.balance is True:
        return lambda start_epoch, settings: balance_factor(start_epoch, settings.max_start_epoch)
    if settings.balance is False:
        return lambda start_epoch, settings: 1.0
    found: Balance = resolve(settings.balance, {}, "distill.balance")
    return found
