"""What distillation is run with; the fields are the keys of conf/distill/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ast_lightning.config.settings import Settings
from ast_lightning.errors import ConfigurationError

ENGINES = ("adjoint", "autograd")
INTERMEDIATE = ("none", "aggregate", "adaptive")
INITIALIZATIONS = ("representative", "real", "noise")
PRECISIONS = ("32-true", "64-true")
SPLITS = ("windows", "batch")


@dataclass(frozen=True)
class DistillSettings(Settings):
    """The outer loop, the unrolled student, and AST's components. The defaults are AST's published values.

    Args:
        ipc: images per class.
        init: ``representative`` (real images nearest to k-means centres of expert logits), ``real`` (random) or
            ``noise``.
        init_clusters: k-means clusters a class of the representative initialisation; at most ``ipc`` are used.
        warm_start: folder of a distilled dataset to go on from; takes the place of ``init``.
        syn_steps: K, inner steps of the student.
        expert_epochs: M, expert epochs of a window.
        max_start_epoch: T⁺, exclusive bound on the start epoch of a window.
        batch_syn: synthetic images of one inner step; None takes all.
        momentum: μ of the student, in [0, 1).
        balance: whether the inner loss is scaled by c(s).
        perturbation: η, scale of the weight perturbation; 0 turns it off.
        intermediate: ``none``, ``aggregate`` (β = 1) or ``adaptive`` (β = i / M).
        augment: whether inner batches are augmented with the data's Siamese families.
        lr_teacher: initial student learning rate α.
        learn_lr: whether α is learned.
        lr_img: outer learning rate of the images.
        lr_lr: outer learning rate of α.
        outer_momentum: momentum of both outer optimisers.
        max_steps: outer iterations.
        eval_every: outer iterations between evaluations; the last iteration is always evaluated.
        engine: of the unroll: ``adjoint``, exact in constant memory, or ``autograd``, the graph of all K steps.
        recompute: whether the adjoint keeps every ⌈√K⌉-th step only; for networks of ten million parameters and more.
        save_every: outer iterations between the states that a killed run goes on from.
        eval_networks: networks of an evaluation during distillation; None takes ``evaluation.networks``.
        windows_per_step: W, windows of an outer iteration over all devices; X and α move by the average of their
            gradients. None takes one a device, or one in all where the batch is split.
        split: what the devices divide: ``windows``, so that W is a multiple of their number, or ``batch``, the rows of
            every inner batch.
    """

    section: ClassVar[str] = "distill"

    ipc: int = 1
    init: str = "representative"
    init_clusters: int = 10
    warm_start: str | None = None
    syn_steps: int = 20
    expert_epochs: int = 2
    max_start_epoch: int = 20
    batch_syn: int | None = None
    momentum: float = 0.9
    balance: bool = True
    perturbation: float = 1.0
    intermediate: str = "aggregate"
    augment: bool = True
    lr_teacher: float = 0.01
    learn_lr: bool = True
    lr_img: float = 1000.0
    lr_lr: float = 1e-5
    outer_momentum: float = 0.5
    engine: str = "adjoint"
    recompute: bool = False
    max_steps: int = 5000
    eval_every: int = 500
    save_every: int = 50
    eval_networks: int | None = None
    windows_per_step: int | None = None
    split: str = "windows"

    def __post_init__(self) -> None:
        self.require_at_least_one("ipc", "init_clusters", "syn_steps", "expert_epochs", "max_start_epoch")
        self.require_at_least_one("batch_syn", "max_steps", "eval_every", "save_every", "eval_networks")
        self.require_at_least_one("windows_per_step")
        self.require_positive("lr_teacher", "lr_img")
        self.require_not_negative("perturbation", "lr_lr")
        self.require_momentum("momentum", "outer_momentum")
        self.require_choice("init", INITIALIZATIONS)
        self.require_choice("intermediate", INTERMEDIATE)
        self.require_choice("engine", ENGINES)
        self.require_choice("split", SPLITS)
        if self.recompute and self.engine != "adjoint":
            raise self.refused("recompute", "the autograd engine keeps every step", "set distill.engine=adjoint")
        if self.split == "batch" and self.engine != "adjoint":
            raise self.refused(
                "engine",
                "the derivatives of a batch that is split over devices (distill.split=batch) are summed in the adjoint",
                "set distill.engine=adjoint",
            )
        if self.intermediate != "none" and self.syn_steps < self.expert_epochs:
            raise self.refused(
                "syn_steps",
                "intermediate matching needs at least one inner step for each of "
                f"distill.expert_epochs={self.expert_epochs}",
                "raise distill.syn_steps or set distill.intermediate=none",
            )

    def windows_in_all(self, devices: int) -> int:
        """W, the windows of an outer iteration on so many devices."""
        return self.windows_per_step or (devices if self.split == "windows" else 1)

    def windows_of_a_device(self, devices: int) -> int:
        """How many of the W windows each device matches.

        Raises:
            ConfigurationError: the devices cannot divide them evenly.
        """
        windows = self.windows_in_all(devices)
        if self.split == "batch":
            return windows
        if windows % devices:
            below = windows // devices * devices
            near = f"{below} or {below + devices}" if below else str(devices)
            raise self.refused(
                "windows_per_step",
                f"{devices} devices cannot divide so many windows evenly",
                f"set distill.windows_per_step={near}, or take a number of devices that divides {windows}",
            )
        return windows // devices

    def check_batch(self, num_images: int) -> None:
        """Refuse a ``batch_syn`` larger than the synthetic set.

        Raises:
            ConfigurationError: with the size of the set.
        """
        if self.batch_syn is not None and self.batch_syn > num_images:
            raise self.refused(
                "batch_syn",
                f"the synthetic set has only {num_images} images",
                f"give at most {num_images}, or null for all of them",
            )


def check_precision(precision: str, experts: object = "<their folder>") -> None:
    """Refuse to distil in 16 bits: the update of X is far below their resolution.

    Args:
        precision: as a Trainer names it, e.g. ``32-true``.
        experts: the folder of experts that were trained with this precision, for the remedy.

    Raises:
        ConfigurationError: it is neither float32 nor float64.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            "trainer.precision",
            precision,
            "distillation is exact to float32 or float64, and 16 bits spoil it",
            f"distil with trainer.precision={PRECISIONS[0]}; the experts of trainer.precision={precision} are "
            f"found with experts_dir={experts}",
        )
