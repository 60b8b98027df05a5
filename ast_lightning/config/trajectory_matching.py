"""The options of section ``distill`` for trajectory matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.settings import option

ENGINES = ("adjoint", "autograd", "truncated")
EXACT_ENGINES = ("adjoint", "autograd")
"""The engines whose results are the same: which of them computes does not identify a run."""
LABELS = ("hard", "soft", "teacher")
NORMALIZED_RATE_STEP = 0.001
"""Size of the normalised step of log α."""
NORMALIZED_LABEL_STEP = 0.01
"""Size of the normalised step of the label logits, in standard deviations of the initial logits."""


@dataclass(frozen=True)
class TrajectoryMatchingSettings(DistillSettings):
    """Trajectory matching with AST's components; options that are null follow from the experts and ``ipc``."""

    needs_experts: ClassVar[bool] = True

    _target_: str = option("ast_lightning.distillation.TrajectoryMatching", "the method")
    syn_steps: int = option(
        None, "K, inner steps of the student; null: 20, or M if that is larger", neutral=20, least=1, most=100_000
    )
    expert_epochs: int = option(None, "M, expert epochs of a window; null: 2", neutral=2, least=1, most=100_000)
    max_start_epoch: int = option(
        None,
        "T⁺, exclusive bound on the start epoch of a window; null: expert.epochs · (0.25 + 0.25 · log10 ipc)",
        neutral=20,
        least=1,
        most=100_000,
    )
    windows: Any = option(
        "uniform", "how expert and start epoch of a window are drawn", type="str | part", choices=("uniform",)
    )
    windows_per_step: int = option(
        1, "W, windows of an outer iteration over all devices; gradients are averaged", least=1, most=100_000
    )
    split: str = option(
        "auto",
        "what is divided among devices: windows | batch | auto (windows if they divide evenly)",
        choices=("auto", "windows", "batch"),
        result=False,
    )
    batch_syn: int | None = option(None, "synthetic images of an inner step; null: all", least=1)
    momentum: float = option(0.9, "momentum μ of the student", least=0, below=1)
    balance: Any = option(
        True, "scale the student's loss by a factor of the start epoch (AST's balanced inner loop)", type="bool | part"
    )
    perturbation: Any = option(1.0, "η of AST's weight perturbation; 0: off", type="float | part", least=0)
    matching: Any = option(
        "trajectory",
        "what enters the matching loss: trajectory (the last step of the student) | nearest (the step nearest to the "
        "target, ATT)",
        type="str | part",
        choices=("trajectory", "nearest"),
    )
    intermediate: str = option(
        "aggregate",
        "intermediate matching: none | aggregate (β = 1) | adaptive (β = i / M)",
        choices=("none", "aggregate", "adaptive"),
    )
    alpha: str = option(
        None,
        "what is learned: log (log α, which keeps α positive) | raw (α, as published) | fixed (nothing); null: log, "
        "with outer=sgd raw",
        choices=("log", "raw", "fixed"),
        neutral="raw",
    )
    lr_lr: float = option(
        None,
        "outer learning rate of α; for alpha=log, of its relative change; null: 0.001 for log, otherwise 1e-5",
        neutral=1e-5,
        least=0,
    )
    labels: str = option(
        "hard",
        "labels of the images: hard | soft (learned, DATM) | teacher (outputs of the expert at the end of the window, "
        "TESLA)",
        choices=LABELS,
    )
    lr_labels: float | None = option(
        None,
        "outer learning rate of the label logits, with labels=soft; for outer=normalized in standard deviations of the "
        "initial logits; null: 0.01, with another outer step 10; 0: the initial labels are kept",
        neutral=1.0,
        least=0,
    )
    label_momentum: float = option(
        0.9, "momentum of the outer step of the label logits, with labels=soft", least=0, below=1
    )
    engine: str = option(
        "adjoint",
        "how the images are differentiated: adjoint (exact, constant memory) | autograd (exact, the graph of all K "
        "steps) | truncated (an approximation, TESLA)",
        choices=ENGINES,
    )
    recompute: bool = option(
        False,
        "store only every √K-th inner step and recompute the others, for networks of ten million parameters or more",
        result=False,
    )
    min_start_epoch: int = option(0, "T⁻, the lowest start epoch of a window", least=0, most=100_000)
    first_start_bound: int | None = option(
        None,
        "T₀, exclusive bound on the start epoch in the first iteration; it rises linearly to max_start_epoch (DATM); "
        "null: max_start_epoch from the start",
        least=1,
        most=100_000,
    )
    expansion_end: int | None = option(
        None, "iteration in which the bound on the start epoch reaches max_start_epoch", least=1
    )
    waypoints: Any = option(
        None,
        "epochs between which trajectories are replaced by straight pieces (MCT), such as [0,17,34,50], or the number "
        "of pieces of about the same length; start epochs are then real numbers; null: trajectories as they are",
        type="int | list[int] | None",
        least=0,
        most=100_000,
    )
    drop_ratio: float = option(
        0.0,
        "share of the parameters that the matching loss leaves out: those where student and target differ least (PAD)",
        least=0,
        below=1,
    )
    max_loss: float | None = option(
        None, "an iteration with a larger loss changes nothing (DATM); null: no bound", above=0
    )

    def follow(self) -> dict[str, Any]:
        alpha = self.alpha or ("raw" if self.outer == "sgd" else "log")
        rates: dict[str, float | None] = {"lr_lr": NORMALIZED_RATE_STEP} if alpha == "log" else {}
        of_labels = NORMALIZED_LABEL_STEP if self.outer == "normalized" else 10.0
        rates["lr_labels"] = of_labels if self.labels == "soft" else None
        return {**super().follow(), **rates, "alpha": alpha, "syn_steps": max(20, self.expert_epochs or 0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == "log" and self.outer == "sgd":
            raise self.refused("alpha", "its step is that of distill.outer=normalized", "choose raw or fixed")
        if self.recompute and self.engine == "autograd":
            raise self.refused("recompute", "the autograd engine keeps every step", "set distill.engine=adjoint")
        if self.split == "batch" and self.engine == "autograd":
            raise self.refused("engine", "distill.split=batch needs the adjoint", "set distill.engine=adjoint")
        if self.intermediate != "none" and self.syn_steps < self.expert_epochs:
            problem = f"intermediate matching needs at least distill.expert_epochs={self.expert_epochs} inner steps"
            raise self.refused("syn_steps", problem, "raise distill.syn_steps or set distill.intermediate=none")
        self._check_truncated()
        self._check_starts()
        self._check_labels()
        if self.matching == "nearest" and self.intermediate != "none":
            problem = f"it selects one step, and distill.intermediate={self.intermediate} compares several"
            raise self.refused("matching", problem, "set distill.intermediate=none")

    def _check_truncated(self) -> None:
        """TESLA's gradient is derived for plain steps and one comparison."""
        if self.engine != "truncated":
            return
        if self.momentum > 0:
            problem = f"it is not defined for a student with distill.momentum={self.momentum:g}"
            raise self.refused("engine", problem, "set distill.momentum=0, or distill.engine=adjoint")
        if self.intermediate != "none":
            problem = f"it is not defined for distill.intermediate={self.intermediate}"
            raise self.refused("engine", problem, "set distill.intermediate=none, or distill.engine=adjoint")

    def _check_starts(self) -> None:
        for given, other in (("first_start_bound", "expansion_end"), ("expansion_end", "first_start_bound")):
            if getattr(self, given) is not None and getattr(self, other) is None:
                problem = f"it has no effect without distill.{other}"
                raise self.refused(given, problem, f"set distill.{other} as well, or leave both out")
        epochs = [0, self.waypoints] if isinstance(self.waypoints, int) else self.waypoints
        if epochs is not None and (len(epochs) < 2 or epochs[0] != 0 or epochs != sorted({*epochs})):
            problem = "this is neither a number of pieces from 1 on, nor two or more epochs in ascending order from 0"
            raise self.refused("waypoints", problem, "give a list such as [0,17,34,50], a number such as 3, or null")

    def waypoints_of(self, last: int) -> list[int] | None:
        """The waypoints of trajectories of ``last`` epochs; m pieces meet at the epochs ⌈i · last / m⌉, as in MCT.

        >>> TrajectoryMatchingSettings(waypoints=3).waypoints_of(50)
        [0, 17, 34, 50]

        Raises:
            ConfigurationError: there are more pieces than epochs.
        """
        if isinstance(self.waypoints, int):
            if self.waypoints > last:
                problem = f"the trajectories have {last} epochs, so that {last} pieces are the most"
                raise self.refused("waypoints", problem, f"give at most {last}, or train experts for more epochs")
            return sorted({-(-last * piece // self.waypoints) for piece in range(self.waypoints + 1)})
        return None if self.waypoints is None else list(self.waypoints)

    def start_bound(self, iteration: int) -> int:
        """U, the exclusive bound on the start epoch: T₀ + ⌊(T⁺ − T₀) · iteration / expansion_end⌋, at most T⁺.

        From DATM (ICLR 2024). Without ``first_start_bound``, it is T⁺ in every iteration.

        >>> growing = TrajectoryMatchingSettings(max_start_epoch=20, first_start_bound=10, expansion_end=1000)
        >>> [growing.start_bound(iteration) for iteration in (0, 99, 100, 999, 1000, 5000)]
        [10, 10, 11, 19, 20, 20]
        """
        if self.first_start_bound is None or self.expansion_end is None:
            return self.max_start_epoch
        missing = self.max_start_epoch - self.first_start_bound
        return min(self.max_start_epoch, self.first_start_bound + missing * iteration // self.expansion_end)

    def _check_labels(self) -> None:
        if self.labels != "soft":
            for name, unset in (("lr_labels", "null"), ("label_momentum", 0.9)):
                if getattr(self, name) not in (None, unset):
                    problem = f"distill.labels={self.labels} learns no label logits"
                    remedy = f"set distill.{name}={unset} (an experiment may have set it), or distill.labels=soft"
                    raise self.refused(name, problem, remedy)
        if self.labels == "teacher" and self.windows_per_step > 1:
            problem = "with several windows in an iteration, the labels would be those of several experts"
            raise self.refused("labels", problem, "set distill.windows_per_step=1, or choose hard or soft labels")
        if self.labels != "hard" and self.canvas > 1:
            problem = (
                f"distill.labels={self.labels} are labels from networks, which take images of the ordinary size only"
            )
            raise self.refused("canvas", problem, "set distill.canvas=1, or distill.labels=hard")

    def splits_batches(self, devices: int) -> bool:
        """Whether this number of devices divides the rows of every inner batch instead of the windows."""
        return self.split == "batch" or (self.split == "auto" and self.windows_per_step % devices != 0)

    def windows_of_a_device(self, devices: int) -> int:
        """How many of the W windows each device matches.

        Raises:
            ConfigurationError: with ``split=windows``, the devices cannot divide the windows evenly.
        """
        windows = self.windows_per_step
        if self.splits_batches(devices):
            return windows
        if windows % devices:
            problem = f"{devices} devices cannot divide so many windows evenly"
            remedy = f"use a multiple of {devices}, or set distill.split=batch, or use fewer devices"
            raise self.refused("windows_per_step", problem, remedy)
        return windows // devices

    def check_batch(self, num_images: int) -> None:
        """Reject a ``batch_syn`` larger than the synthetic set.

        Raises:
            ConfigurationError: it is larger; the message gives the size of the set.
        """
        if self.batch_syn is not None and self.batch_syn > num_images:
            problem, remedy = f"the synthetic set has only {num_images} images", f"give at most {num_images}, or null"
            raise self.refused("batch_syn", problem, remedy)
