"""All benchmarks of speed and memory in one report: ``python -m benchmarks``."""

from __future__ import annotations

from benchmarks import evaluation, experts, trajectories, unroll
from benchmarks.arguments import Size, run


def report(size: Size) -> list[str]:
    """The sections of every benchmark."""
    return [section for each in (unroll, experts, evaluation, trajectories) for section in each.report(size)]


if __name__ == "__main__":
    run(report, __doc__)
