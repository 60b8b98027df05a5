"""The untuned outer step against SGD at its best rate, on several datasets: ``python -m benchmarks.outer_steps``.

The untuned step uses default options, except for the number of iterations. SGD is run with each of four learning
rates, with a learned and with a fixed student learning rate; the best is the one with the highest accuracy on held-out
training images. All runs of a cell share experts, real images, iterations and the evaluation on the test set. If the
command is interrupted, rerun it: finished runs are read from their folders.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed

import ast_lightning.sweeps.table  # noqa: F401  it registers the resolver ${sweep_name:}
from ast_lightning.commands.app import build_run
from ast_lightning.commands.distill import distill
from ast_lightning.commands.evaluate import evaluate
from ast_lightning.commands.run import Run
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.errors import DistillationDiverged

NARROW = ("network.width=16", "num_experts=2", "expert.epochs=10", "expert.lr=0.01")
RATES = (10, 100, 1000, 10000)
UNTUNED = "untuned"


@dataclass(frozen=True)
class Cell:
    """A dataset and a number of images per class.

    Attributes:
        name: name in the table.
        data: overrides for data, network and experts.
        ipc: images per class.
    """

    name: str
    data: tuple[str, ...]
    ipc: int


def cells(folders: dict[str, Path]) -> list[Cell]:
    """All cells, except those of datasets without a folder."""
    data: tuple[str, ...] = ("data=digits", "network.width=16", "network.depth=2", "num_experts=3", "expert.epochs=20")
    data += ("expert.batch_size=64", "expert.lr=0.01")
    found = [Cell(f"digits, {ipc}", data, ipc) for ipc in (1, 10)]
    if root := folders.get("fashion_mnist"):
        data = ("data=fashion_mnist", f"data.root={root}", "data.per_class=500", *NARROW)
        found += [Cell(f"Fashion-MNIST, {ipc}", data, ipc) for ipc in (1, 10)]
        found += [Cell("Fashion-MNIST ZCA, 1", (*data, "data.preprocessing=zca"), 1)]
    if root := folders.get("cifar10"):
        data = ("data=image_folder", f"data.root={root}", "data.image_size=32", *NARROW)
        found += [Cell(f"CIFAR-10, {ipc}", data, ipc) for ipc in (1, 10)]
        found += [Cell("CIFAR-10 ZCA, 1", (*data, "data.preprocessing=zca"), 1)]
    if root := folders.get("tiny_imagenet"):
        data = ("data=image_folder", f"data.root={root}", "data.image_size=64", "network.depth=4", *NARROW)
        found += [Cell("Tiny ImageNet, 1", data, 1)]
    return found


def arms() -> dict[str, tuple[str, ...]]:
    """The overrides of each arm, by name."""
    sgd = ("distill.outer=sgd", "distill.recoveries=0")
    rates = {
        f"SGD {rate} {alpha}": (*sgd, f"distill.lr_img={rate}", f"distill.alpha={alpha}")
        for alpha in ("raw", "fixed")
        for rate in RATES
    }
    return {UNTUNED: (), **rates}


@dataclass(frozen=True)
class Outcome:
    """The result of an arm.

    Attributes:
        test, spread: accuracy and its standard deviation over networks in per cent; NaN if the run diverged.
        validation: accuracy on held-out training images in per cent.
        curve: test accuracy by iteration.
    """

    test: float = math.nan
    spread: float = math.nan
    validation: float = -math.inf
    curve: tuple[tuple[int, float], ...] = ()


def run_of(cell: Cell, options: argparse.Namespace, *overrides: str) -> Run:
    """The run of an arm."""
    words = [*cell.data, f"distill.ipc={cell.ipc}", f"output_dir={options.folder}", "logger=csv"]
    words += [f"trainer={options.trainer}", "trainer.enable_progress_bar=false", "data.validation_fraction=0.2"]
    words += [f"distill.max_steps={options.steps}", f"distill.eval_every={max(1, options.steps // 3)}"]
    words += [f"evaluation.networks={options.networks}", "evaluation.epochs=300", *overrides]
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        config = compose("config", overrides=words, return_hydra_config=True)
    return build_run(config, choices=config.hydra.runtime.choices)


def outcome_of(cell: Cell, name: str, options: argparse.Namespace) -> Outcome:
    """Distil with an arm, or read its existing result."""
    began = time.monotonic()
    run = run_of(cell, options, *arms()[name])
    diverged = run.distill_folder() / "diverged"
    found = Outcome()
    if not diverged.exists():
        try:
            metrics = distill(run)
            tests = metrics["test_accuracy"], metrics["test_accuracy_std"], metrics["validation_accuracy"]
            found = Outcome(*tests, curve_of(run))
        except DistillationDiverged as error:
            diverged.write_text(f"{error}\n", encoding="utf-8")
    report(f"{cell.name}: {name}: {found.test:.1f} % ({time.monotonic() - began:.0f} s)")
    return found


def experts_of(cell: Cell, options: argparse.Namespace) -> None:
    """Train the experts of a cell, unless they exist."""
    train_experts(run_of(cell, options))
    report(f"{cell.name}: experts")


def first_of_each(chosen: list[Cell]) -> list[Cell]:
    """One of the cells that share experts, so that no two processes train the same experts."""
    return list({cell.data: cell for cell in chosen}.values())


def real_images(cell: Cell, options: argparse.Namespace) -> dict[str, float]:
    """Accuracies of random and of representative real images in per cent."""
    return evaluate(run_of(cell, options, "baselines=[random,representative]"))


def silent(task: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function without what it prints to standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return task(*arguments)


def curve_of(run: Run) -> tuple[tuple[int, float], ...]:
    """The test accuracies that the logger has written."""
    found: dict[int, float] = {}
    for path in sorted(run.distill_folder().rglob("metrics.csv")):
        with path.open(encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("test/accuracy")]
        found |= {int(row["step"]): float(row["test/accuracy"]) for row in rows}
    return tuple(sorted(found.items()))


def row_of(cell: Cell, found: dict[str, Outcome], real: dict[str, float], options: argparse.Namespace) -> list[str]:
    """The row of a cell in the table."""
    untuned, rates = found[UNTUNED], {name: each for name, each in found.items() if name != UNTUNED}
    name, best = max(rates.items(), key=lambda each: each[1].validation)
    reached = [step for step, accuracy in untuned.curve if accuracy >= best.test]
    error = math.hypot(untuned.spread, best.spread) / math.sqrt(options.networks)
    diverged = sum(math.isnan(each.test) for each in rates.values())
    return [
        cell.name,
        f"{real['random_accuracy']:.1f}",
        f"{real['representative_accuracy']:.1f}",
        f"{untuned.test:.1f} ± {untuned.spread:.1f}",
        f"{best.test:.1f} ± {best.spread:.1f} ({name})",
        f"{untuned.test - best.test:+.1f} ({error:.1f})",
        f"{min(reached) / options.steps:.2f}" if reached else "–",
        f"{diverged} of {len(rates)}",
    ]


def report(text: str) -> None:
    """Print progress to standard error; the table goes to standard output."""
    print(text, file=sys.stderr, flush=True)


HEADER = ["dataset, images per class", "random", "representative", UNTUNED, "best SGD", "difference (its error)"]
HEADER += ["part of the iterations to the best SGD", "SGD runs that diverged"]


def main(arguments: list[str] | None = None) -> None:
    """Print the table of all cells."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/outer_steps"), help="of all runs")
    parser.add_argument("--steps", type=int, default=150, help="outer iterations")
    parser.add_argument("--networks", type=int, default=5, help="networks of an evaluation")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, each in a process")
    parser.add_argument("--trainer", default="cpu", help="as in conf/trainer: cpu, gpu")
    parser.add_argument("--only", default="*", help="cells whose name matches this, e.g. 'CIFAR*, 1'")
    for name in ("fashion-mnist", "cifar10", "tiny-imagenet"):
        parser.add_argument(f"--{name}", type=Path, help="folder of the images; without it, left out")
    options = parser.parse_args(arguments)
    folders: dict[str, Any] = {name: getattr(options, name) for name in ("fashion_mnist", "cifar10", "tiny_imagenet")}
    chosen = [cell for cell in cells(folders) if fnmatchcase(cell.name, options.only)]
    in_parallel = Parallel(n_jobs=options.workers)
    in_parallel(delayed(silent)(experts_of, cell, options) for cell in first_of_each(chosen))
    tasks = [(cell, name) for cell in chosen for name in arms()]
    outcomes = dict(zip(tasks, in_parallel(delayed(silent)(outcome_of, *task, options) for task in tasks), strict=True))
    real = in_parallel(delayed(silent)(real_images, cell, options) for cell in chosen)
    rows = [HEADER, ["---"] * len(HEADER)]
    for cell, accuracies in zip(chosen, real, strict=True):
        rows.append(row_of(cell, {name: outcomes[cell, name] for name in arms()}, accuracies, options))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
