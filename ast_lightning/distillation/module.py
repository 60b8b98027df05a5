"""DistillModule: synthetic images as the parameters of a LightningModule."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ast_lightning.compilation import Compilation
from ast_lightning.config.distill import TrajectoryMatchingSettings, check_precision
from ast_lightning.data import SiameseAugmentation
from ast_lightning.distillation.accumulation import KnownGradients
from ast_lightning.distillation.trajectory_matching.adjoint import StepBatch
from ast_lightning.distillation.trajectory_matching.inner import InnerProblem
from ast_lightning.distillation.trajectory_matching.matching import balance_factor, matching_loss, matching_steps
from ast_lightning.distillation.trajectory_matching.perturbation import perturb
from ast_lightning.distillation.trajectory_matching.split import SplitProblem, check_network
from ast_lightning.distillation.trajectory_matching.unroll import unroll
from ast_lightning.distillation.trajectory_matching.windows import TrajectoryWindows, Window
from ast_lightning.errors import DistillationDiverged
from ast_lightning.evaluation import NetworkEvaluator, evaluation_loader, gather_scores
from ast_lightning.networks import FunctionalNetwork, NetworkFactory
from ast_lightning.randomness import keyed_generator
from ast_lightning.synthetic import TrainingSet


class DistillModule(LightningModule):
    """Distils trajectories into images: one optimiser step is one outer iteration over W windows.

    The ranks of a Trainer with several devices divide the windows, or with ``split=batch`` the rows of every inner
    batch. Every draw is keyed by the number of its window, so that the result does not depend on how many ranks there
    are, up to the order of summation.

    X (``images``) and α (``learning_rate``) are its only parameters. Train it with a Trainer of
    ``max_steps=settings.max_steps``, ``inference_mode=False``, ``num_sanity_val_steps=0`` and, where an evaluator is
    given, ``val_check_interval`` with ``check_val_every_n_epoch=None``.

    Args:
        network: builds the student; the architecture of the trajectories.
        images: X before distillation, ``[N, C, H, W]`` float32, preprocessed like the real images.
        labels: Y, ``[N]`` int64.
        windows: the stream of trajectory windows.
        settings: the method.
        augmentation: the Siamese augmentation of inner batches; None for none.
        evaluator: trains the networks of each validation; None for no validation.
        seed: of every draw.
        compilation: whether the student's derivatives are compiled; None for not.

    Logged each iteration, as means over its windows: ``train/loss``, ``train/match_<i>`` (the weighted term of expert
    epoch s + i), ``train/start_distance`` ‖θ_0 − θ*_{s+M}‖, ``train/start_epoch``; and ``train/student_lr``,
    ``train/image_gradient_norm``. At each validation: ``<split>/accuracy`` and ``<split>/accuracy_std`` in per cent.

    Raises:
        ConfigurationError: ``batch_syn`` is larger than the set, the Trainer's precision has 16 bits, its devices
            cannot divide the windows, or a layer of the student looks at the whole of a batch that is split.
        DistillationDiverged: during training, see :meth:`on_before_optimizer_step`.
    """

    def __init__(
        self,
        network: NetworkFactory,
        images: Tensor,
        labels: Tensor,
        windows: TrajectoryWindows,
        settings: TrajectoryMatchingSettings,
        *,
        augmentation: SiameseAugmentation | None = None,
        evaluator: NetworkEvaluator | None = None,
        seed: int = 0,
        compilation: Compilation | None = None,
    ) -> None:
        super().__init__()
        settings.check_batch(len(images))
        if settings.split == "batch":
            check_network(network)
        self.settings = settings
        self.seed = seed
        self.images = nn.Parameter(images.detach().clone())
        learning_rate = torch.tensor(settings.lr_teacher, dtype=images.dtype)
        if settings.learn_lr:
            self.learning_rate: Tensor = nn.Parameter(learning_rate)
        else:
            self.register_buffer("learning_rate", learning_rate)
        self.register_buffer("labels", labels.clone())
        self.labels: Tensor
        self._student = FunctionalNetwork(network)  # a plain object: nothing in it is trained or wrapped by DDP
        self._student.require_pure(images[0])
        self._compilation = compilation
        self._problem = InnerProblem(self._student, compilation)
        self._windows = windows
        self._augmentation = augmentation if settings.augment and augmentation else SiameseAugmentation(None)
        self._evaluator = evaluator
        self._match_at = matching_steps(
            settings.syn_steps, settings.expert_epochs, settings.intermediate, windows.every_n_epochs
        )
        self._loss = torch.tensor(math.nan)
        self._scores: dict[int, dict[str, float]] = {}
        self.evaluated_at: int | None = None

    @property
    def compilation(self) -> Compilation:
        """Whether the student's derivatives are compiled, and why; off with the reason once compilation has failed."""
        return self._problem.compilation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [{"params": [self.images], "lr": self.settings.lr_img}]
        if self.settings.learn_lr:
            groups.append({"params": [self.learning_rate], "lr": self.settings.lr_lr})
        return torch.optim.SGD(groups, momentum=self.settings.outer_momentum)

    def train_dataloader(self) -> DataLoader[Window]:
        settings, ranks = self.settings, self.trainer.world_size
        splits = settings.splits_batches(ranks)  # all ranks follow the same windows then
        self._windows.start_at(
            self.global_step, 0 if splits else self.global_rank, 1 if splits else ranks, settings.windows_per_step
        )
        return DataLoader(self._windows, batch_size=settings.windows_of_a_device(ranks), collate_fn=list)

    def val_dataloader(self) -> DataLoader[list[int]] | list[DataLoader[list[int]]]:
        if self._evaluator is None:
            return []
        ranks = self.trainer.world_size
        return evaluation_loader(self._evaluator.groups(self.settings.eval_networks, ranks), self.global_rank, ranks)

    def on_fit_start(self) -> None:
        check_precision(str(self.trainer.precision))
        self.settings.windows_of_a_device(self.trainer.world_size)
        self._student.to(self.device, self.images.dtype)
        if self.trainer.world_size > 1 and self.settings.splits_batches(self.trainer.world_size):
            self._problem = SplitProblem(self._student, self._compilation)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Windows stay in the machine's memory until their turn; networks to evaluate are plain numbers."""
        return batch

    def training_step(self, windows: list[Window], batch_index: int) -> Tensor:
        """This rank's part of an outer iteration: the mean loss of its windows, each differentiated in its turn."""
        learned = [each for each in (self.images, self.learning_rate) if each.requires_grad]
        sums: list[Tensor] = []
        measured: list[dict[str, Tensor]] = []
        for window in windows:
            loss, found = self.match(window)
            gradients = torch.autograd.grad(loss, learned)
            del loss  # and with it what the way back needed, before the next window makes its own
            sums = [total + each for total, each in zip(sums, gradients, strict=True)] if sums else list(gradients)
            measured.append(found)
        means = [total / len(windows) for total in sums]
        if isinstance(self._problem, SplitProblem):
            means[0] = self._problem.ranks * means[0]  # the averages over ranks become the sum over their rows
        averages = self._averages(measured)
        self._loss = averages["train/loss"]
        for name, value in averages.items():
            self.log(name, value, prog_bar=name == "train/loss")
        self.log("train/student_lr", self.learning_rate.detach())
        return KnownGradients.apply(self._loss, means, *learned)

    def match(self, window: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the student that follows one window, and what is logged of it, detached scalars by name."""
        settings = self.settings
        start = perturb(
            window.start.to(self.images),
            self._student.layout,
            settings.perturbation,
            keyed_generator(self.seed, "perturbation", window.index),
        )
        targets = window.targets.to(self.images)
        matched = unroll(
            self._problem,
            start,
            self.images,
            self.labels,
            self.inner_batches(window.index),
            self.learning_rate,
            steps=settings.syn_steps,
            momentum=settings.momentum,
            loss_scale=balance_factor(window.start_epoch, settings.max_start_epoch) if settings.balance else 1.0,
            match_at=self._match_at,
            engine=settings.engine,
            recompute=settings.recompute,
        )
        loss = matching_loss(matched, self._match_at, start, targets, settings.intermediate)
        measured = {"train/loss": loss.total.detach()}
        measured |= {f"train/match_{offset}": part for offset, part in loss.parts.items()}
        measured["train/start_distance"] = (start - targets[-1]).norm()
        measured["train/start_epoch"] = start.new_tensor(window.start_epoch)
        return loss.total, measured

    def _averages(self, measured: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means over the windows of all ranks, the same on each."""
        means = torch.stack([torch.stack(list(each.values())) for each in measured]).mean(0)
        if self.trainer.world_size > 1:
            reduced = self.trainer.strategy.reduce(means, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            means = reduced
        return dict(zip(measured[0], means.unbind(), strict=True))

    def inner_batches(self, window_index: int) -> StepBatch:
        """The augmented batch of each inner step of the student that follows window ``window_index``.

        Random permutations of the set in chunks of ``batch_syn``; where it does not divide the set, the small chunk
        leads, as in the published code.
        """
        count, size = len(self.images), self.settings.batch_syn or len(self.images)
        chunks_of_turn: dict[int, list[Tensor]] = {}

        def batch(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            turn, position = divmod(step, math.ceil(count / size))
            if turn not in chunks_of_turn:
                generator = keyed_generator(self.seed, "inner order", window_index, turn)
                chunks_of_turn.clear()
                chunks_of_turn[turn] = list(reversed(torch.randperm(count, generator=generator).split(size)))
            rows = chunks_of_turn[turn][position].to(images.device)
            height, width = images.shape[-2:]
            generator = keyed_generator(self.seed, "inner augmentation", window_index, step)
            draw = self._augmentation.draw(len(rows), (height, width), generator)
            return self._augmentation.apply(images[rows], draw), labels[rows]

        return batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an update that would spoil the synthetic set.

        Loss and gradients are averaged over ranks by now, so that every rank comes to the same verdict.

        Raises:
            DistillationDiverged: the loss or a gradient is not finite.
        """
        assert self.images.grad is not None
        norm = self.images.grad.norm()
        self.log("train/image_gradient_norm", norm)
        finite = norm.isfinite() & self._loss.isfinite()
        if self.learning_rate.grad is not None:
            finite = finite & self.learning_rate.grad.isfinite()
        if not finite:
            raise DistillationDiverged(
                self.global_step,
                f"the matching loss is {float(self._loss):g} and the norm of its image gradient {float(norm):g}",
                f"lower distill.lr_img ({self.settings.lr_img:g}) or distill.lr_lr ({self.settings.lr_lr:g}), "
                f"or begin with a lower distill.lr_teacher ({self.settings.lr_teacher:g})",
            )

    def on_train_batch_end(self, outputs: object, batch: list[Window], batch_index: int) -> None:
        """Stop when the update has taken α to 0 or below.

        Raises:
            DistillationDiverged: with the value of α.
        """
        self._refuse_lost_rate()

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep the last state in which α was positive: callbacks may save before :meth:`on_train_batch_end`.

        Raises:
            DistillationDiverged: with the value of α.
        """
        self._refuse_lost_rate()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the values as they are: a Trainer of 64-true loads them before it converts the module."""
        self.to(checkpoint["state_dict"]["images"].dtype)

    def _refuse_lost_rate(self) -> None:
        learning_rate = float(self.learning_rate.detach())
        if not learning_rate > 0:
            raise DistillationDiverged(
                self.global_step - 1,
                f"the student learning rate became {learning_rate:g}",
                f"lower distill.lr_lr ({self.settings.lr_lr:g}), or keep it fixed with distill.learn_lr=false",
            )

    def training_set(self) -> TrainingSet:
        """The synthetic set as it is now, detached."""
        return TrainingSet(self.images.detach(), self.labels, float(self.learning_rate.detach()))

    def on_validation_epoch_start(self) -> None:
        self._scores = {}

    def validation_step(self, indices: list[int], batch_index: int) -> None:
        assert self._evaluator is not None
        current = self.training_set()
        accuracies = self._evaluator.run(indices, lambda index: current, self.device)
        for position, index in enumerate(indices):
            self._scores[index] = {split: values[position] for split, values in accuracies.items()}

    def on_validation_epoch_end(self) -> None:
        if self._evaluator is None:
            return
        for split, score in gather_scores(self, self._scores, list(self._evaluator.splits)).items():
            self.log(f"{split}/accuracy", score.mean, prog_bar=True, rank_zero_only=True)
            self.log(f"{split}/accuracy_std", score.std, rank_zero_only=True)
        self.evaluated_at = self.global_step
        self._check_ranks()

    def _check_ranks(self) -> None:
        """Make sure that all ranks hold the same images: nothing after this would be meaningful otherwise."""
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(self.images.detach().clone(), reduce_op="mean")
            assert isinstance(mean, Tensor)
            difference = (mean - self.images.detach()).abs().max()
            self.log("ranks/image_difference", difference, sync_dist=True, reduce_fx="max")
            if not bool(torch.allclose(mean, self.images.detach(), rtol=1e-5, atol=1e-6)):
                raise RuntimeError(f"the ranks hold different synthetic images (by up to {float(difference):g})")
