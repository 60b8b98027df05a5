"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import describe_machine, use_float32


@dataclass(frozen=True)
class Size:
    """Size of a benchmark.

    Attributes:
        small: run a subset that takes a few minutes.
        rounds: number of runs of each variant.
        device: ``cpu`` or ``cuda``.
    """

    small: bool
    rounds: int
    device: str


def run(
    report: Callable[[Size], Sequence[str]],
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    on_devices: bool = True,
) -> None:
    """Print a report, and write it to the file given by ``--output``.

    Args:
        report: returns the sections, in Markdown.
        description: description of the command; ``--help`` prints its first line.
        arguments: arguments of the command line; None uses ``sys.argv``.
        on_devices: whether the benchmark has a ``--device`` option; otherwise it runs on the CPU.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few minutes' set in place of the whole")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant (default 5)")
    if on_devices:
        parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default cpu)")
    else:
        parser.set_defaults(device="cpu")
    parser.add_argument("--output", type=Path, help="a Markdown file to write as well")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch finds no CUDA device here; take --device=cpu")
    use_float32()
    sections = [describe_machine(), *report(Size(options.small, options.rounds, options.device))]
    text = "\n\n".join(sections) + "\n"
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
