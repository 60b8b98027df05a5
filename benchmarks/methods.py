"""All methods on equal terms: ``python -m benchmarks.methods``.

The methods of a cell share the network, the real images, the number of iterations and the evaluation. With the step
``untuned``, all have the normalised outer step and the windows that follow from the experts; with ``published``, they
have the outer step of their row for CIFAR-10 at the same number of images per class (the nearest row, if there is
none). Methods whose experts have the same options share them: the command counts how often it trains each expert, and
fails if that is more than once. If the command is interrupted, rerun it: finished runs are read from their folders.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.commands.app import build_run, quiet
from ast_lightning.commands.distill import distill
from ast_lightning.commands.run import Run
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.errors import DistillationDiverged
from benchmarks.measure import peak_bytes, reset_peak

METHODS = ("ast", "mtt", "ftd", "tesla", "datm", "pad", "att", "mct", "dm")
FEW = ("ast", "mtt", "datm", "att")
UNTUNED, PUBLISHED = "untuned", "published"
STEP = ("outer", "schedule", "alpha", "lr_img", "lr_lr", "lr_labels", "max_loss")
"""The options of an outer step. ``ema`` is left out: it has hardly moved at the end of a short run."""
PROTOCOL = ("evaluation=mtt", "evaluation.epochs=300")
HEADER = ["data, images per class", "method", "step", "accuracy %", "± networks", "± seeds", "experts s"]
HEADER += ["distillation s", "peak MB"]


@dataclass(frozen=True)
class Cell:
    """A dataset and a number of images per class.

    Attributes:
        name: of the dataset.
        data: overrides for data, network and experts.
        ipc: images per class.
        methods, steps, seeds: what is run, in all combinations.
    """

    name: str
    data: tuple[str, ...]
    ipc: int
    methods: tuple[str, ...] = FEW
    steps: tuple[str, ...] = (UNTUNED,)
    seeds: int = 1


@dataclass(frozen=True)
class Arm:
    """A method with an outer step on a cell; it is run with every seed of the cell."""

    cell: Cell
    method: str
    step: str


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        accuracy, spread: on the test set in per cent, and its standard deviation over networks; NaN if it diverged.
        experts: seconds of the training steps of all experts; 0 without experts.
        seconds: seconds of the outer iterations.
        peak: bytes by which the iterations increase the peak memory.
    """

    accuracy: float
    spread: float
    experts: float
    seconds: float
    peak: float


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells of the datasets that have a folder; digits need none."""
    experts: tuple[str, ...] = ("num_experts=3", "expert.epochs=20", "expert.batch_size=64", "expert.lr=0.01")
    found: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        (
            "digits",
            ("data=digits", "network.width=16", "network.depth=2", *experts),
            {"methods": METHODS, "steps": (UNTUNED, PUBLISHED), "seeds": options.seeds},
        )
    ]
    experts = ("network.width=16", "num_experts=2", "expert.epochs=10", "expert.lr=0.01")
    if root := options.fashion_mnist:
        found.append(("fashion_mnist", ("data=fashion_mnist", f"data.root={root}", "data.per_class=500", *experts), {}))
    if root := options.cifar10:
        data = ("data=image_folder", "data.name=cifar10", f"data.root={root}", "data.image_size=32")
        found.append(("cifar10", (*data, *experts), {}))
    return [Cell(name, data, ipc, **others) for name, data, others in found for ipc in (1, 10)]


def arms_of(chosen: Iterable[Cell], methods: Iterable[str] = METHODS) -> list[Arm]:
    """All methods and steps of these cells."""
    return [Arm(cell, each, step) for cell in chosen for step in cell.steps for each in cell.methods if each in methods]


@functools.cache
def published_step(method: str, ipc: int) -> tuple[str, ...]:
    """The overrides of a method's published outer step for CIFAR-10, at this number of images or at one."""
    names = (f"{method}_cifar10_ipc{each}" for each in (ipc, 1))
    name = next(each for each in names if (CONFIGURATION / "experiment" / f"{each}.yaml").exists())
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        values = compose("config", overrides=[f"experiment={name}"]).distill
    return tuple(f"distill.{each}={values[each]}" for each in STEP if values.get(each) is not None)


def run_of(arm: Arm, seed: int, options: argparse.Namespace) -> Run:
    """The run of an arm."""
    folder = options.folder.absolute()
    words = [*arm.cell.data, f"method={arm.method}", *PROTOCOL, f"distill.ipc={arm.cell.ipc}", f"seed={seed}"]
    words += ("distill.outer=normalized",) if arm.step == UNTUNED else published_step(arm.method, arm.cell.ipc)
    words += [f"distill.max_steps={options.steps}", f"distill.eval_every={options.steps}"]
    words += [f"evaluation.networks={options.networks}", f"evaluation.at_once={options.networks}"]
    words += [f"output_dir={folder}", "logger=none", f"trainer={options.trainer}", "trainer.enable_progress_bar=false"]
    words += ["+callbacks.stopwatch._target_=benchmarks.methods.Stopwatch", f"+callbacks.stopwatch.folder={folder}"]
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        config = compose("config", overrides=[*words, *options.overrides], return_hydra_config=True)
    return build_run(config, choices=config.hydra.runtime.choices)


class Stopwatch(Callback):
    """Measures the training steps of an expert or of a distillation, without evaluations, also over interruptions.

    Args:
        folder: all runs are below this folder; the measurements are written to ``<folder>/times``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seconds, self.peak = 0.0, 0
        self._base, self._began = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._base = reset_peak()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._began
        self.peak = max(self.peak, peak_bytes() - self._base)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self.path_of(Path(trainer.default_root_dir))
        trained = read_times(path).get("trained", 0) + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": self.seconds, "peak": self.peak, "trained": trained}), encoding="utf-8")

    def path_of(self, folder: Path) -> Path:
        """The file of the measurements of a run."""
        return self.folder / "times" / f"{folder.absolute().relative_to(self.folder)}.json"

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "peak": self.peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.peak = state_dict["seconds"], state_dict["peak"]


def read_times(path: Path) -> dict[str, Any]:
    """The measurements of a run; empty before its end."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def expert_times(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The measurements of the experts of a run."""
    watch = Stopwatch(str(options.folder.absolute()))
    return [read_times(path) for path in sorted(watch.path_of(run.experts_folder()).with_suffix("").glob("*.json"))]


def experts_of(arm: Arm, seed: int, options: argparse.Namespace) -> None:
    """Train the missing experts of an arm."""
    run = run_of(arm, seed, options)
    with contextlib.redirect_stdout(io.StringIO()):
        train_experts(run)
    report(f"{arm.cell.name}, seed {seed}: {run.experts_folder().name}")


def outcome_of(arm: Arm, seed: int, options: argparse.Namespace) -> Outcome:
    """Distil with an arm, or read its existing result."""
    run = run_of(arm, seed, options)
    diverged, metrics = run.distill_folder() / "diverged", {}
    if not diverged.exists():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                metrics = distill(run)
        except DistillationDiverged as error:
            diverged.write_text(f"{error}\n", encoding="utf-8")
    times = read_times(Stopwatch(str(options.folder.absolute())).path_of(run.distill_folder()))
    experts = sum(each["seconds"] for each in expert_times(run, options)) if uses_experts(run) else 0.0
    found = Outcome(
        metrics.get("test_accuracy", math.nan),
        metrics.get("test_accuracy_std", math.nan),
        experts,
        times.get("seconds", math.nan),
        times.get("peak", math.nan),
    )
    where = f"{arm.cell.name}, {arm.cell.ipc}, seed {seed}"
    report(f"{where}: {arm.method}, {arm.step}: {found.accuracy:.1f} % ({found.seconds:.0f} s)")
    return found


def uses_experts(run: Run) -> bool:
    """Whether a run needs experts, for its windows, its initial images or its labels."""
    return bool(run.distill.uses_experts(run.config["distill"]))


def train_each_once(arms: list[Arm], options: argparse.Namespace, pool: ProcessPoolExecutor) -> str:
    """Train the experts of all arms, once for all arms that share them; return a sentence with their number.

    Raises:
        SystemExit: an expert was trained more than once, or is missing.
    """
    stores: dict[Path, tuple[Arm, int, Run]] = {}
    for arm in arms:
        for seed in range(arm.cell.seeds):
            if uses_experts(run := run_of(arm, seed, options)):
                stores.setdefault(run.experts_folder(), (arm, seed, run))
    list(pool.map(functools.partial(_call, experts_of, options), ((arm, seed) for arm, seed, _ in stores.values())))
    wanted = sum(int(run.config["num_experts"]) for _, _, run in stores.values())
    trained = [each["trained"] for _, _, run in stores.values() for each in expert_times(run, options)]
    if trained != [1] * wanted:
        raise SystemExit(f"{wanted} experts are needed, and these trainings were counted: {trained}")
    runs = sum(arm.cell.seeds for arm in arms)
    return f"{wanted} experts in {len(stores)} sets were trained, each once, for {runs} runs."


def row_of(arm: Arm, found: list[Outcome]) -> list[str]:
    """The row of an arm: means over seeds."""

    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values)

    accuracies = [each.accuracy for each in found]
    return [
        f"{arm.cell.name}, {arm.cell.ipc}",
        arm.method,
        arm.step,
        f"{mean(accuracies):.1f}",
        f"{mean(each.spread for each in found):.1f}",
        f"{statistics.stdev(accuracies):.1f}" if len(found) > 1 else "–",
        f"{mean(each.experts for each in found):.0f}",
        f"{mean(each.seconds for each in found):.0f}",
        f"{mean(each.peak for each in found) / 1e6:.0f}",
    ]


def report(text: str) -> None:
    """Print progress to standard error; the table goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def _call(task: Callable[..., Any], options: argparse.Namespace, arguments: tuple[Any, ...]) -> Any:
    with quiet():
        return task(*arguments, options)


def main(arguments: list[str] | None = None) -> None:
    """Print the table of all cells, and write it to ``--output``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"), help="of all runs")
    parser.add_argument("--output", type=Path, help="Markdown file of the table; without it, FOLDER/methods.md")
    parser.add_argument("--steps", type=int, default=150, help="outer iterations")
    parser.add_argument("--networks", type=int, default=5, help="networks of an evaluation")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the digits; the other data have one")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, each in a process of one thread")
    parser.add_argument("--trainer", default="cpu", help="as in conf/trainer: cpu, gpu")
    parser.add_argument("--only", default="digits,fashion_mnist,cifar10", help="datasets, joined by commas")
    parser.add_argument("--ipc", default="1,10", help="images per class, joined by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, joined by commas")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the images; without it, left out")
    parser.add_argument("--cifar10", type=Path, help="folder with train/CLASS/ and test/CLASS/; without it, left out")
    parser.add_argument("overrides", nargs="*", help="overrides of every run, such as compile=false")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [cell for cell in cells(options) if cell.name in options.only.split(",")]
    chosen = [cell for cell in chosen if str(cell.ipc) in options.ipc.split(",")]
    arms = arms_of(chosen, options.methods.split(","))
    tasks = [(arm, seed) for arm in arms for seed in range(arm.cell.seeds)]
    context = multiprocessing.get_context("spawn")
    # a process for every run, so that its peak memory is its own
    with quiet(), ProcessPoolExecutor(options.workers, context, max_tasks_per_child=1) as pool:
        sentence = train_each_once(arms, options, pool)
        found = dict(zip(tasks, pool.map(functools.partial(_call, outcome_of, options), tasks), strict=True))
    rows = [HEADER, ["---"] * len(HEADER)]
    rows += [row_of(arm, [found[arm, seed] for seed in range(arm.cell.seeds)]) for arm in arms]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{sentence}\n"
    print(text)
    (options.output or options.folder / "methods.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
