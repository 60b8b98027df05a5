"""The options of the top level, which belong to no section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ast_lightning.config.settings import Settings, option

BASELINES = ("random", "representative", "whole")


@dataclass(frozen=True)
class RootSettings(Settings):
    """What all three commands share: seeds, experts, folders."""

    section: ClassVar[str] = ""

    seed: int = option(0, "seed of every random draw")
    num_experts: int = option(10, "experts to train and to distil from")
    expert_index: int | None = option(None, "train this expert only; null: 0 … num_experts − 1", result=False)
    expert_processes: Any = option("auto", "processes that train experts; auto: one per GPU", result=False)
    output_dir: str = option("runs", "all results are written below this folder", result=False)
    buffers: str | None = option(None, "folder of replay_buffer_*.pt files to import instead of training")
    experts_dir: str | None = option(None, "trajectories to use; null: the folder that follows from the options")
    fresh: bool = option(False, "start over; the earlier folder is moved aside, never deleted", result=False)
    synthetic: str | None = option(None, "what evaluate.py evaluates; null: the last set of this run", result=False)
    compile: Any = option("auto", "torch.compile: auto (where the run is long enough) | true | false", result=False)
    tf32: bool = option(False, "TensorFloat-32 on GPUs that have it: faster, about three digits")
    baselines: list[str] = option([], f"what to compare with, e.g. baselines=[{','.join(BASELINES)}]", result=False)

    def __post_init__(self) -> None:
        self.require_at_least(0, "seed", "expert_index")
        self.require_at_least(1, "num_experts")
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise self.refused("compile", "there is no such choice", "choose one of auto, true, false")
        if self.expert_processes is None:
            raise self.refused("expert_processes", "it must be a whole number or auto", "give a number, or auto")
        if self.expert_processes != "auto":
            self.require_at_least(1, "expert_processes")
        for name in self.baselines:
            if name not in BASELINES:
                raise self.refused("baselines", f"there is no baseline {name}", f"choose of {', '.join(BASELINES)}")
