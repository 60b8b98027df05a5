"""How a run survives divergence: back to the last good values of the set, with a smaller step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

KEPT_EVERY = 50
"""Iterations between the values that are kept."""
SMALLER = 0.25
"""What the step is multiplied by each time."""
_START, _FACTOR, _PATIENCE = 20, 4.0, 20


@dataclass
class Recovery:
    """Watches the loss and keeps good values of a set. All of it is in the checkpoint and follows from the iterations
    alone, so that an interrupted run and all ranks decide alike.

    Attributes:
        good: the kept values, by the names of the set's parameters; empty before the first iteration.
        kept_at: the iteration before which they were kept.
        start: sum of the first 20 losses.
        above: how many iterations in succession the loss has been above 4 times the mean of those.
        events: what happened: ``iteration``, ``back_to``, ``step`` (its factor from there on) and ``problem``.
    """

    good: dict[str, Tensor] = field(default_factory=dict)
    kept_at: int = 0
    start: float = 0.0
    above: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def watch(self, iteration: int, loss: float) -> str | None:
        """What is wrong with the loss of an iteration; None where nothing is."""
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
        """Keep the values before ``iteration`` where it is time to, and the loss is not too high."""
        if not self.good or (iteration % KEPT_EVERY == 0 and not self.above):
            self.good = {name: each.detach().clone() for name, each in values.named_parameters()}
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
        """Restore the kept values, forget what the optimiser has accumulated, and make its steps smaller.

        Returns:
            The event.
        """
        for name, each in values.named_parameters():
            each.copy_(self.good[name])
            each.grad = None
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
