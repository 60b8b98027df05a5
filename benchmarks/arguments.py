"""The command line that the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import describe_machine, use_float32


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        small: a set of a few minutes in place of the whole.
        rounds: runs of each variant.
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
    """Print a report, and write it to a file where one is named.

    Args:
        report: the sections, in Markdown.
        description: of the command; its first line is shown by ``--help``.
        arguments: of the command line; None takes the process's.
        on_devices: whether it can be measured elsewhere than on the CPU.
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
