"""The options of the top level, which belong to no section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import LARGEST_SEED, Settings, option

BASELINES = ("random", "representative", "whole")


@dataclass(frozen=True)
class RootSettings(Settings):
    """Options of all three commands: seeds, experts, folders."""

    section: ClassVar[str] = ""

    seed: int = option(0, "seed of every random draw", least=0, most=LARGEST_SEED)
    num_experts: int = option(
        10, "experts to train and to distil from; with experts_dir, all of that folder are used", least=1, most=100_000
    )
    expert_index: int | None = option(
        None, "train this expert only; null: 0 … num_experts − 1", least=0, most=99_999, result=False
    )
    expert_processes: int | str = option(
        "auto", "processes that train experts; auto: one per GPU", least=1, most=1000, choices=("auto",), result=False
    )
    output_dir: str = option("runs", "all results are written below this folder", result=False)
    buffers: str | None = option(None, "folder of replay_buffer_*.pt files to import instead of training")
    experts_dir: str | None = option(None, "trajectories to use; null: the folder that follows from the options")
    fresh: bool = option(False, "start over; the earlier folder is moved aside, never deleted", result=False)
    synthetic: str | None = option(
        None, "distilled dataset that evaluate.py evaluates; null: the last set of this run", result=False
    )
    compile: str | bool = option(
        "auto", "torch.compile: auto (where the run is long enough) | true | false", choices=("auto",), result=False
    )
    tf32: bool = option(False, "TensorFloat-32 on GPUs that support it: faster, about three significant digits")
    baselines: list[str] = option(
        [],
        f"baselines that evaluate.py adds to its table, e.g. baselines=[{','.join(BASELINES)}]",
        choices=BASELINES,
        result=False,
    )
    architectures: list[Any] = option(
        [],
        "networks that evaluate.py compares, one row each: names of files in conf/network/ or mappings with _target_, "
        "e.g. architectures=[convnet,alexnet,vgg11,resnet18]; []: the network of the run",
        type="list[str/part]",
        result=False,
    )
