"""The options of section ``distill``: those of every method, and those of distribution matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import Settings, option
from ast_lightning.errors import ConfigurationError

INITS = ("representative", "real", "noise", "correct")
FROM_EXPERTS = ("representative", "correct")
"""Values of ``init`` that need experts."""
OUTER_STEPS = ("normalized", "sgd")
PRECISIONS = ("32-true", "64-true")
SCHEDULES = ("inverse_sqrt", "constant", "cosine")
MOST_IMAGES = 100_000
"""Largest number of images per class."""
NORMALIZED_STEP = 0.1
"""Size of the normalised step at one image per class, in standard deviations of the initial images."""


@dataclass(frozen=True)
class DistillSettings(Settings):
    """Options of every method: the synthetic set, its initialisation, the outer loop.

    A method of your own extends it with its options. Fields that take a name also take a mapping with ``_target_``,
    which names a function or class of your own (docs/extending.md).
    """

    section: ClassVar[str] = "distill"
    needs_experts: ClassVar[bool] = False
    """Whether the method distils from trajectories of experts."""

    ipc: int = option(1, "images per class", least=1, most=MOST_IMAGES)
    init: Any = option(
        "representative",
        "initial images: representative | real (random) | noise | correct (random ones that an expert classifies "
        "correctly)",
        type="str | part",
        choices=INITS,
    )
    init_clusters: int = option(10, "k-means clusters per class of init=representative; at most ipc are used", least=1)
    warm_start: str | None = option(None, "folder of a distilled dataset to start from, with its learning rate")
    ema: float | None = option(
        None,
        "δ of an average of the images, X̄ ← δ X̄ + (1 − δ) X after every iteration, which is evaluated and kept instead "
        "of X (FTD, ATT); it starts as the initial images, so that 0.999 needs thousands of iterations; null: off",
        above=0,
        below=1,
    )
    canvas: int = option(
        1,
        "side of a canvas as a multiple of the image side; above 1, the set consists of canvases, and every batch "
        "contains random crops of them (MTT's textures)",
        least=1,
        most=64,
    )
    crops: int = option(
        1, "crops of each canvas in a batch; distill.batch_syn counts the canvases", least=1, most=10_000
    )
    augment: bool = option(
        True, "Siamese augmentation of the synthetic images, with the transforms of data.augmentation"
    )
    lr_teacher: float = option(
        None,
        "initial learning rate α of the student; null: expert.lr · (1 + log10 ipc)",
        neutral=0.01,
        above=0,
    )
    outer: Any = option(
        "normalized",
        "the outer step: normalized (no tuning) | sgd (as published)",
        type="str | part",
        choices=OUTER_STEPS,
        neutral="sgd",
    )
    lr_img: float = option(
        None,
        "outer learning rate of the images, for outer=normalized in standard deviations of the initial images. null: "
        "0.2 / ipc^0.75; with schedule=constant or cosine 0.1 / ipc^0.75; with outer=sgd 1000",
        neutral=1000.0,
        above=0,
    )
    outer_momentum: float = option(0.5, "momentum of the outer step", least=0, below=1)
    schedule: str = option(
        None,
        "schedule of the outer step: inverse_sqrt (times 1 / √(1 + iteration / 20)) | constant | cosine (to 0 at "
        "max_steps); null: inverse_sqrt, for sgd constant",
        choices=SCHEDULES,
        neutral="constant",
    )
    recoveries: int = option(
        3,
        "how often a run that diverges goes back to its last good images, with a quarter of the step",
        least=0,
        result=False,
    )
    max_steps: int = option(
        5000, "outer iterations; a run can be made longer, except with schedule=cosine", least=1, result=False
    )
    eval_every: int = option(500, "iterations between evaluations; the last is always evaluated", least=1, result=False)
    save_every: int = option(50, "iterations between checkpoints, from which a run resumes", least=1, result=False)
    eval_networks: int | None = option(
        None,
        "networks in each evaluation during distillation; null: evaluation.networks",
        least=1,
        most=10_000,
        result=False,
    )

    @classmethod
    def uses_experts(cls, values: Mapping[str, Any]) -> bool:
        """Whether the method or the initial images use experts; a user's own ``init`` counts as using them."""
        init = values.get("init")
        initial = not values.get("warm_start") and (isinstance(init, Mapping) or init in FROM_EXPERTS)
        return cls.needs_experts or initial

    @property
    def starts_from_experts(self) -> bool:
        """Whether experts are needed to choose the initial images."""
        return self.init in FROM_EXPERTS and not self.warm_start

    def follow(self) -> dict[str, Any]:
        if self.outer != "normalized":
            return {}
        schedule = self.schedule or "inverse_sqrt"
        first = NORMALIZED_STEP * (2 if schedule == "inverse_sqrt" else 1)
        return {"schedule": schedule, "lr_img": round(first / max(1, self.ipc) ** 0.75, 6)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer == "normalized" and self.lr_img > 10:
            problem = "with distill.outer=normalized it is a number of standard deviations, about 0.2"
            raise self.refused("lr_img", problem, "leave it out, or set distill.outer=sgd for a rate of plain SGD")
        if self.crops > 1 and self.canvas == 1:
            problem = "crops are taken from canvases, and the set consists of images"
            raise self.refused("crops", problem, "set distill.canvas=2, or leave distill.crops out")


@dataclass(frozen=True)
class DistributionMatchingSettings(DistillSettings):
    """Distribution matching (DM, Zhao and Bilen, WACV 2023); the defaults are its published values."""

    _target_: str = option("ast_lightning.distillation.distribution_matching.DistributionMatching", "the method")
    init: Any = option(
        "real", "initial images; representative and correct need experts", type="str | part", choices=INITS
    )
    outer: Any = option(
        "sgd", "the outer step: sgd (as published) | normalized (no tuning)", type="str | part", choices=OUTER_STEPS
    )
    lr_img: float = option(
        None,
        "outer learning rate of the images; null: 1; for outer=normalized as in method=ast",
        neutral=1.0,
        above=0,
    )
    max_steps: int = option(20000, "outer iterations", least=1, result=False)
    real_batch: int = option(256, "real images of each class in an iteration, drawn at random", least=1)


def check_canvases(canvas: int, preprocessing: object, option: str = "distill.canvas") -> None:
    """Reject canvases of whitened images, because whitening depends on the position in the image.

    Args:
        canvas: side of a canvas in image sides.
        preprocessing: the kind of preprocessing.
        option: the name of ``canvas``, for the error message.

    Raises:
        ConfigurationError: ``canvas`` is above 1, and the preprocessing is ``zca``.
    """
    if canvas > 1 and preprocessing == "zca":
        problem = "ZCA whitening depends on the position in the image, but random crops of canvases move it"
        raise ConfigurationError(option, canvas, problem, "use data.preprocessing=standardize")


def check_precision(precision: str, experts: object = "<their folder>") -> None:
    """Reject distillation in 16 bits, because the updates of X are far below the resolution of 16 bits.

    Args:
        precision: as a Trainer names it, e.g. ``32-true``.
        experts: the folder of experts that were trained with this precision, for the remedy.

    Raises:
        ConfigurationError: it is neither float32 nor float64.
    """
    if precision not in PRECISIONS:
        remedy = f"set trainer.precision={PRECISIONS[0]} experts_dir={experts}"
        raise ConfigurationError(
            "trainer.precision",
            precision,
            "distillation needs float32 or float64: 16 bits are too coarse for its updates",
            remedy,
        )
