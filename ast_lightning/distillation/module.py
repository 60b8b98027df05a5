"""DistillModule: the outer loop of every method, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ast_lightning.compilation import Compilation
from ast_lightning.config.distill import check_precision
from ast_lightning.distillation.accumulation import KnownGradients
from ast_lightning.distillation.method import Method
from ast_lightning.distillation.outer import outer_step
from ast_lightning.distillation.recovery import Recovery
from ast_lightning.distillation.synthetic_set import SyntheticSet
from ast_lightning.errors import DistillationDiverged
from ast_lightning.evaluation import NetworkEvaluator, evaluation_loader, gather_scores
from ast_lightning.synthetic import TrainingSet
from ast_lightning.terminal import say

_SET = "synthetic."
_RECOVERY = "recovery"
_SKIPPED = "skipped"


class _Work(IterableDataset[list[Any]]):
    def __init__(self, items: Callable[[], Iterator[list[Any]]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[Any]]:
        return self._items()


class DistillModule(LightningModule):
    """Trains a synthetic set with a method. One optimiser step is one outer iteration over the items of all ranks.

    The set is the only submodule with parameters. Train it with a Trainer with ``max_steps=settings.max_steps``,
    ``inference_mode=False``, ``num_sanity_val_steps=0`` and, if an evaluator is given, ``val_check_interval`` and
    ``check_val_every_n_epoch=None``.

    Args:
        synthetic: the set to distil.
        method: provides work items and their losses.
        evaluator: trains the networks of each validation; None disables validation.

    Logged at each iteration: the scalars of the method, as means over all items (``train/loss``), the scalars of the
    set (``train/student_lr``), and ``train/image_gradient_norm``. At each validation: ``<split>/accuracy`` and
    ``<split>/accuracy_std`` in per cent.

    Raises:
        ConfigurationError: the Trainer uses a 16-bit precision, the method rejects the number of devices, or the set
            has no average for ``distill.ema`` or no crops for ``distill.canvas``.
        DistillationDiverged: during training, see :meth:`on_before_optimizer_step`.
    """

    def __init__(self, synthetic: SyntheticSet, method: Method, *, evaluator: NetworkEvaluator | None = None) -> None:
        super().__init__()
        self.settings = method.settings
        self.synthetic = synthetic
        if self.settings.canvas > 1 and synthetic.training_set().crop_size is None:
            problem = f"the synthetic set {type(synthetic).__name__} has no crops"
            raise self.settings.refused("canvas", problem, "leave it out")
        if self.settings.ema is not None:
            synthetic.keep_average(self.settings.ema)
        self.method = method  # not an nn.Module, so that DDP does not wrap it
        self._evaluator = evaluator
        self._outer = outer_step(method.settings)
        self.recovery = Recovery()
        self.skipped = 0
        self._means: dict[str, Tensor] = {"train/loss": torch.tensor(math.nan)}
        self._scores: dict[int, dict[str, float]] = {}

    @property
    def compilation(self) -> Compilation:
        """Whether the derivatives are compiled, and why; off with the reason once compilation has failed."""
        return self.method.compilation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self._outer(self.synthetic.groups(self.settings), self.settings)

    def train_dataloader(self) -> DataLoader[list[Any]]:
        step, rank, ranks = self.global_step, self.global_rank, self.trainer.world_size
        return DataLoader(_Work(lambda: self.method.work(step, rank, ranks)), batch_size=None)

    def val_dataloader(self) -> DataLoader[list[int]] | list[DataLoader[list[int]]]:
        if self._evaluator is None:
            return []
        ranks = self.trainer.world_size
        return evaluation_loader(self._evaluator.groups(self.settings.eval_networks, ranks), self.global_rank, ranks)

    def on_fit_start(self) -> None:
        check_precision(str(self.trainer.precision))
        self.method.start(self.device, next(self.synthetic.parameters()).dtype)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave work items in CPU memory until they are processed; evaluation batches are plain indices."""
        return batch

    def training_step(self, items: list[Any], batch_index: int) -> Tensor:
        """The mean loss of this rank's items, which are differentiated one after the other."""
        learned = [each for each in self.synthetic.parameters() if each.requires_grad]
        sums: list[Tensor] = []
        measured: list[dict[str, Tensor]] = []
        for item in items:
            loss, found = self.method.loss(item, self.synthetic)
            gradients = torch.autograd.grad(loss, learned, materialize_grads=True)
            del loss  # frees the memory of its backward pass before the next item
            sums = [total + each for total, each in zip(sums, gradients, strict=True)] if sums else list(gradients)
            measured.append(found)
        self._means = self._averages(measured)
        for name, value in (self._means | self.synthetic.logged()).items():
            self.log(name, value, prog_bar=name == "train/loss")
        return KnownGradients.apply(self._means["train/loss"], [total / len(items) for total in sums], *learned)

    def _averages(self, measured: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means over the items of all ranks; the result is the same on each rank."""
        means = torch.stack([torch.stack(list(each.values())) for each in measured]).mean(0)
        if self.trainer.world_size > 1:
            reduced = self.trainer.strategy.reduce(means, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            means = reduced
        return dict(zip(measured[0], means.unbind(), strict=True))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Recover if the loss or a gradient has diverged. Skip an update that the method does not accept.

        The losses of skipped iterations count for a recovery: if the images have diverged, all later iterations would
        be skipped. Gradients of a skipped iteration may be infinite. Loss and gradients are already averaged over
        ranks, so that every rank makes the same decision.

        Raises:
            DistillationDiverged: the run has diverged, and no ``distill.recoveries`` are left.
        """
        self.recovery.keep(self.global_step, self.synthetic)
        gradients = [each.grad for each in self.synthetic.parameters() if each.grad is not None]
        norm, loss = gradients[0].norm(), self._means["train/loss"]
        self.log("train/image_gradient_norm", norm)
        accepted = self.method.accepts(self._means)
        if accepted is not None:
            self.log("train/skipped", float(not accepted))
        skipped = accepted is False
        problem = self.recovery.watch(self.global_step, float(loss))
        if not (problem or skipped or all(bool(each.isfinite().all()) for each in gradients)):
            problem = f"the norm of the image gradient is {float(norm):g}"
        if problem:
            rates = {each["name"]: each["lr"] for each in self.synthetic.groups(self.settings) if "name" in each}
            rates["lr_teacher"] = self.settings.lr_teacher
            listed = " or ".join(f"distill.{name} ({value:g})" for name, value in rates.items())
            self._recover(problem, f"lower {listed}", optimizer)
        elif skipped:
            self.skipped += 1
            # without gradients, the optimiser changes nothing, not even its state
            for parameter in self.synthetic.parameters():
                parameter.grad = None
        else:
            self.synthetic.accept()

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Apply the update, and restore the last good values if it has made the set unusable.

        An iteration that restores earlier values is not followed by :meth:`SyntheticSet.after_iteration`: all values
        of the set, such as its average, are then those of the iteration gone back to.

        Raises:
            DistillationDiverged: see :meth:`on_before_optimizer_step`.
        """
        recoveries = len(self.recovery.events)
        super().optimizer_step(*arguments, **named)
        if problem := self.synthetic.problem(self.settings):
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            self._recover(*problem, optimizer)
        if len(self.recovery.events) == recoveries:
            self.synthetic.after_iteration()

    def _recover(self, problem: str, remedy: str, optimizer: torch.optim.Optimizer) -> None:
        # at least one iteration has to succeed
        if len(self.recovery.events) >= min(self.settings.recoveries, self.settings.max_steps - 1):
            raise DistillationDiverged(self.global_step, problem, remedy)
        schedulers = [each.scheduler for each in self.trainer.lr_scheduler_configs]
        event = self.recovery.go_back(self.global_step, problem, self.synthetic, optimizer, schedulers)
        say(
            f"iteration {self.global_step}: {problem}; back to the images of iteration {event['back_to']}, with "
            f"{event['step']:g} of the step"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RECOVERY] = self.recovery.state_dict()
        checkpoint[_SKIPPED] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stored dtype: with ``precision=64-true``, Lightning loads values before it converts the module."""
        values = checkpoint["state_dict"]
        # before version 0.1, the module held the tensors of the set itself
        checkpoint["state_dict"] = {_SET + name.removeprefix(_SET): value for name, value in values.items()}
        self.to(next(value.dtype for value in values.values() if value.is_floating_point()))
        self.recovery = Recovery(**checkpoint.get(_RECOVERY, {}))
        self.skipped = checkpoint.get(_SKIPPED, 0)

    def training_set(self) -> TrainingSet:
        """The current synthetic set, detached."""
        return self.synthetic.training_set()

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
        self._check_ranks()

    def _check_ranks(self) -> None:
        """Check that all ranks hold the same set; otherwise all further results would be meaningless."""
        if self.trainer.world_size > 1:
            # not training_set(): an average of the images would hide the difference
            values = torch.cat([each.detach().flatten() for each in self.synthetic.parameters()])
            mean = self.trainer.strategy.reduce(values.clone(), reduce_op="mean")
            assert isinstance(mean, Tensor)
            difference = (mean - values).abs().max()
            self.log("ranks/image_difference", difference, sync_dist=True, reduce_fx="max")
            if not bool(torch.allclose(mean, values, rtol=1e-5, atol=1e-6)):
                raise RuntimeError(f"the ranks hold different synthetic images (by up to {float(difference):g})")
