"""The options of section ``trainer``: arguments of Lightning's Trainer, and ``timeout_seconds``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import Settings, option
from ast_lightning.errors import ConfigurationError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp")
PROFILERS = ("simple", "advanced")
PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
SHORT_PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}
"""Lightning's short names of precisions: runs that differ only in the name are the same run."""

OTHER_ARGUMENTS = """
    logger callbacks max_epochs min_epochs max_steps min_steps max_time limit_train_batches limit_val_batches
    limit_test_batches limit_predict_batches overfit_batches val_check_interval check_val_every_n_epoch
    num_sanity_val_steps enable_checkpointing enable_model_summary accumulate_grad_batches gradient_clip_val
    gradient_clip_algorithm deterministic benchmark inference_mode use_distributed_sampler detect_anomaly
    barebones plugins sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams
    model_registry
""".split()  # noqa: SIM905
"""Other arguments that Lightning's Trainer accepts: ``+trainer.name=value``."""

CHANGE_RESULTS = ("gradient_clip_val", "gradient_clip_algorithm")
"""The arguments among these that change results; they are part of the identity of a run."""

_SET_ELSEWHERE = {  # arguments that the commands set themselves, and what to set instead
    "logger": "use logger=tensorboard, csv, wandb, mlflow or none",
    "callbacks": "use +callbacks.mine._target_=my_package.MyCallback",
    "default_root_dir": "set output_dir",
    **dict.fromkeys(("enable_checkpointing", "inference_mode", "num_sanity_val_steps"), "leave it out"),
    "use_distributed_sampler": "leave it out",
}
_FALSIFY = {  # arguments with which reports would be wrong, and what to set instead
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), "set data.per_class, a number of images of each class"),
    "limit_val_batches": "set evaluation.networks, distill.eval_networks or data.per_class",
    "limit_test_batches": "set evaluation.networks",
    "check_val_every_n_epoch": "set distill.eval_every; experts are tested after every epoch",
    "val_check_interval": "set distill.eval_every; experts are tested after every epoch",
    "accumulate_grad_batches": "set distill.windows_per_step or expert.batch_size",
}


@dataclass(frozen=True)
class TrainerSettings(Settings):
    """Where and how Lightning's Trainer runs; add its other arguments with ``+trainer.NAME=VALUE``."""

    section: ClassVar[str] = "trainer"

    accelerator: str = option("auto", "type of device", choices=ACCELERATORS, result=False)
    devices: Any = option(
        1,
        "number of devices; auto: all; or a list of device indices, from 0",
        type="int | str | list[int]",
        least=0,
        most=100_000,
        choices=("auto",),
        result=False,
    )
    num_nodes: int = option(1, "number of machines", least=1, most=100_000, result=False)
    timeout_seconds: float = option(
        1800, "seconds that processes of strategy=ddp wait for each other", least=1, most=10**9, result=False
    )
    strategy: str = option("auto", "how several devices share the work", choices=STRATEGIES, result=False)
    precision: Any = option("32-true", "numerical precision; 16 bits only for experts", type="str", choices=PRECISIONS)
    log_every_n_steps: int = option(10, "steps between two logged values; 0: none", least=0, result=False)
    enable_progress_bar: bool = option(True, "show a progress bar", result=False)
    fast_dev_run: Any = option(
        False,
        "run one batch, or this number of batches, of everything; nothing is written",
        type="bool | int",
        least=0,
        result=False,
    )
    profiler: str | None = option(None, "Lightning's profiler", choices=PROFILERS, result=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", SHORT_PRECISIONS.get(str(self.precision), self.precision))
        super().__post_init__()
        if not self.devices or (isinstance(self.devices, list) and len(set(self.devices)) < len(self.devices)):
            raise self.refused(
                "devices", "it must name at least one device, and each only once", "give 1, or auto for all"
            )


def rejected_argument(name: str, value: object) -> ConfigurationError | None:
    """The error for an argument of Lightning's Trainer that the commands set, or that would make reports wrong."""
    for remedies, problem in (
        (_SET_ELSEWHERE, "the command sets this itself"),
        (_FALSIFY, "the reported accuracies would not be those of the networks that were trained"),
    ):
        if name in remedies:
            return ConfigurationError(f"trainer.{name}", value, problem, remedies[name])
    return None
