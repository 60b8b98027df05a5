"""What distillation is run with; the fields are the keys of conf/distill/."""

from __future__ import annotations

from dataclasses import dataclass

from ast_lightning.distillation.matching import INTERMEDIATE
from ast_lightning.errors import ConfigurationError

INITIALIZATIONS = ("representative", "real", "noise")


@dataclass(frozen=True)
class DistillSettings:
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
        eval_networks: networks of an evaluation during distillation; None takes ``evaluation.networks``.
    """

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
    max_steps: int = 5000
    eval_every: int = 500
    eval_networks: int | None = None

    def __post_init__(self) -> None:
        counts = (
            "ipc",
            "init_clusters",
            "syn_steps",
            "expert_epochs",
            "max_start_epoch",
            "max_steps",
            "eval_every",
        )
        for name in (*counts, "batch_syn", "eval_networks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _refused(name, value, "it must be at least 1", "give a positive whole number")
        for name in ("lr_teacher", "lr_img"):
            if not getattr(self, name) > 0:
                raise _refused(name, getattr(self, name), "it must be positive", "give a number above 0")
        for name in ("perturbation", "lr_lr"):
            if not getattr(self, name) >= 0:
                raise _refused(name, getattr(self, name), "it must not be negative", "give 0 to turn it off")
        for name in ("momentum", "outer_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise _refused(name, getattr(self, name), "it must lie in [0, 1)", "give 0 for no momentum")
        for name, choices in (("init", INITIALIZATIONS), ("intermediate", INTERMEDIATE)):
            if getattr(self, name) not in choices:
                raise _refused(
                    name, getattr(self, name), "there is no such choice", f"take one of {', '.join(choices)}"
                )
        if self.intermediate != "none" and self.syn_steps < self.expert_epochs:
            raise _refused(
                "syn_steps",
                self.syn_steps,
                f"intermediate matching needs at least one inner step for each of "
                f"distill.expert_epochs={self.expert_epochs}",
                "raise distill.syn_steps or set distill.intermediate=none",
            )

    def check_batch(self, num_images: int) -> None:
        """Refuse a ``batch_syn`` larger than the synthetic set.

        Raises:
            ConfigurationError: with the size of the set.
        """
        if self.batch_syn is not None and self.batch_syn > num_images:
            raise _refused(
                "batch_syn",
                self.batch_syn,
                f"the synthetic set has only {num_images} images",
                f"give at most {num_images}, or null for all of them",
            )


def _refused(name: str, value: object, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"distill.{name}", value, problem, remedy)
