"""The optimiser of an expert: ``expert.optimizer`` selects a function of (parameters, settings).

The function returns a torch optimiser, or Lightning's dictionary of an optimiser and a scheduler. All its state must be
in its ``state_dict``, so that a resumed run is bit-identical. An optimiser that needs several gradients in a step, such
as SAM, calls the closure of ``step(closure)`` once for each gradient. Each call evaluates the loss of the same batch
with the same augmentation at the current parameters, and stores the gradient in ``.grad``, averaged over devices. This
is not supported with ``trainer.precision=16-mixed``, because the gradient scaler evaluates the closure itself, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from ast_lightning.config.expert import ExpertSettings
from ast_lightning.config.parts import resolve
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts.gsam import GSAM

OptimizerBuilder = Callable[[Sequence[nn.Parameter], ExpertSettings], Any]


class SingleDecay(MultiStepLR):
    """Decays the learning rate once and resets the momentum at that point, as the published code does.

    Args:
        optimizer: the optimiser, whose state is cleared at the decay.
        last_epoch_index: the last epoch with the initial rate, counted from 0.
        factor: factor of the learning rate; 1 changes nothing.
    """

    def __init__(self, optimizer: Optimizer, last_epoch_index: int, factor: float) -> None:
        super().__init__(optimizer, [last_epoch_index + 1], factor)

    def begin_epoch(self, epoch: int) -> None:
        """Clear the state of the optimiser before the first epoch with the lower rate."""
        if epoch in self.milestones and self.gamma != 1:
            self.optimizer.state.clear()


def with_decay(optimizer: Optimizer, settings: ExpertSettings) -> OptimizerLRScheduler:
    """``optimizer`` with the schedule of ``expert.lr_decay`` and ``expert.lr_decay_epoch``."""
    decay = SingleDecay(optimizer, settings.decay_after, settings.lr_decay)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "epoch"}}


def sgd(parameters: Sequence[nn.Parameter], settings: ExpertSettings) -> OptimizerLRScheduler:
    """SGD with momentum and weight decay, and a learning rate that decays once."""
    optimizer = SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return with_decay(optimizer, settings)


def gsam(parameters: Sequence[nn.Parameter], settings: ExpertSettings) -> OptimizerLRScheduler:
    """:class:`GSAM` with the momentum, weight decay and schedule of :func:`sgd`."""
    optimizer = GSAM(
        parameters,
        rho=settings.sam_rho,
        alpha=settings.sam_alpha,
        adaptive=settings.sam_adaptive,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    return with_decay(optimizer, settings)


OPTIMIZERS: dict[str, OptimizerBuilder] = {"sgd": sgd, "gsam": gsam}


def build_optimizer(parameters: Sequence[nn.Parameter], settings: ExpertSettings) -> OptimizerLRScheduler:
    """Build the optimiser that ``expert.optimizer`` selects.

    Raises:
        ConfigurationError: the function cannot be imported or called, or does not return an optimiser.
    """
    built = resolve(settings.optimizer, OPTIMIZERS, "expert.optimizer")(parameters, settings)
    found = built.get("optimizer") if isinstance(built, Mapping) else built
    if not isinstance(found, Optimizer):
        remedy = "return a torch optimiser, or {'optimizer': …, 'lr_scheduler': …}"
        problem = f"it returned a {type(built).__name__}"
        raise ConfigurationError("expert.optimizer", settings.optimizer, problem, remedy)
    return built  # Lightning checks the rest
