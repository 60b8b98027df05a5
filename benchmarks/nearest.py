"""ATT's nearest step against MTT on windows of real experts: part of ``python -m benchmarks.unroll``."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.commands.app import build_run
from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import context_of
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.config.trajectory_matching import TrajectoryMatchingSettings
from ast_lightning.distillation import Method, SyntheticSet, TrajectoryMatching, starting_point

WORDS: tuple[str, ...] = (
    "method=mtt",
    "data=digits",
    "network.width=32",
    "network.depth=2",
    "num_experts=2",
    "expert.epochs=20",
)
WORDS += ("expert.batch_size=64", "expert.lr=0.01", "distill.ipc=10", "logger=none", "compile=false", "trainer=cpu")
NEAREST = ("distill.matching=nearest",)


def nearest(steps: Sequence[int], windows: int) -> str:
    """Seconds of an iteration with ATT's loss and with MTT's, on windows of experts that are trained on digits.

    The synthetic images are those that a run starts from. Both losses take turns on the same windows.

    Args:
        steps: values of K.
        windows: number of windows for each K.
    """
    lines = [
        f"### Unroll: nearest step (ATT) against the last one (MTT), 100 images of digits, {windows} windows",
        "",
        "| K | mean k* | seconds, MTT | ATT | ratio |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            train_experts(_run(folder))
        for count in steps:
            methods = [_prepared(_run(folder, f"distill.syn_steps={count}", *words)) for words in ((), NEAREST)]
            timings: tuple[list[float], list[float]] = ([], [])
            chosen = []
            for index in range(-1, windows):  # the first run warms up
                for seconds, (method, synthetic) in zip(timings, methods, strict=True):
                    began = time.perf_counter()
                    logged = _differentiate(method, synthetic, abs(index))
                    seconds.append(time.perf_counter() - began)
                chosen.append(float(logged["train/matched_step"]))
            plain, near = (statistics.median(seconds[1:]) for seconds in timings)
            mean = statistics.mean(chosen[1:])
            lines.append(f"| {count} | {mean:.1f} | {plain:.3g} | {near:.3g} | {near / plain:.2f} |")
    return "\n".join(lines)


def _run(folder: str, *overrides: str) -> Run:
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        words = [*WORDS, f"output_dir={Path(folder).resolve()}", *overrides]
        config = compose("config", overrides=words, return_hydra_config=True)
    return build_run(config, choices=config.hydra.runtime.choices)


def _prepared(run: Run) -> tuple[TrajectoryMatching, SyntheticSet]:
    settings, context = run.distill, context_of(run)
    method: Method = run.method.build(settings, context)
    assert isinstance(method, TrajectoryMatching)
    assert isinstance(settings, TrajectoryMatchingSettings)
    run.data.setup("fit")
    synthetic = method.synthetic_set(*starting_point(settings, context))
    method.start(torch.device("cpu"), torch.float32)
    return method, synthetic


def _differentiate(method: TrajectoryMatching, synthetic: SyntheticSet, index: int) -> dict[str, Tensor]:
    loss, logged = method.loss(method.windows.window(index), synthetic)
    torch.autograd.grad(loss, list(synthetic.parameters()))
    return logged
