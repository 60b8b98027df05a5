"""Recovery from divergence: restore the last good values of the set and continue with a smaller step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

KEPT_EVERY = 50
"""Number of iterations between saved values."""
SMALLER = 0.25
"""Factor of the step size at each recovery."""
_START, _FACTOR, _PATIENCE = 20, 4.0, 20


@dataclass
class Recovery:
    """Monitors the loss and saves good values of a set, its parameters and buffers.

    All fields are stored in the checkpoint and depend only on the iterations, so that a resumed run and all ranks make
    the same decisions.

    Attributes:
        good: the saved values by name, those of ``state_dict()``; empty before the first iteration.
        kept_at: the iteration before which they were saved.
        start: sum of the first 20 losses.
        above: number of consecutive iterations in which the loss exceeded 4 times the mean of the first 20 losses.
        events: the recoveries: ``iteration``, ``back_to``, ``step`` (the total factor of the step size) and
            ``problem``.
    """

    good: dict[str, Tensor] = field(default_factory=dict)
    kept_at: int = 0
    start: float = 0.0
    above: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def watch(self, iteration: int, loss: float) -> str | None:
        """Describe what is wrong with the loss of an iteration; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss:g}"
        if iteration < _START:
            self.start += loss
            return None
        limit = _FACTOR * self.start / _START
        self.above = self.above + 1 if loss > limit > 0 else 0
        if self.above < _PATIENCE:
            return None
        return f"the loss ({loss:.3g}) has been above {_FACTOR:g} times that of the start for {_PATIENCE} iterations"

    def keep(self, iteration: int, values: nn.Module) -> None:
        """Save the values before ``iteration`` every ``KEPT_EVERY`` iterations, unless the loss is too high."""
        if not self.good or (iteration % KEPT_EVERY == 0 and not self.above):
            self.good = {name: each.detach().clone() for name, each in values.state_dict().items()}
            self.kept_at = iteration

    @torch.no_grad()
    def go_back(
        self,
        iteration: int,
        problem: str,
        values: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedulers: Iterable[Any] = (),
    ) -> dict[str, Any]:
        """Restore the saved values, reset the optimiser state, and reduce the step size.

        Returns:
            The new entry of ``events``.
        """
        for name, each in values.state_dict().items():
            if name in self.good:  # checkpoints of earlier versions have the parameters only
                each.copy_(self.good[name])
        for parameter in values.parameters():
            parameter.grad = None
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group.update({name: SMALLER * group[name] for name in ("lr", "initial_lr") if name in group})
        for scheduler in schedulers:
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [SMALLER * rate for rate in scheduler.base_lrs]
        self.above = 0
        factor = SMALLER ** (len(self.events) + 1)
        self.events.append({"iteration": iteration, "back_to": self.kept_at, "step": factor, "problem": problem})
        return self.events[-1]

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)
