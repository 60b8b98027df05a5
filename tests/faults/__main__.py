"""Kill expert training, distillation and evaluation at random instants; end as if nothing had happened.

    python -m tests.faults --kills 20 --seed 0

A chain is one folder: the command is killed, started again, killed again … until it comes to its end, and what it
leaves is compared with an uninterrupted run byte by byte. Chains follow each other until there were enough kills; the
last one then comes to its end undisturbed. Three quarters of the kills come inside a file operation that is drawn at
random, the others after a random time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .contents import contents, differences
from .scripts import ROOT, Outcome, prepare, run

WORDS = (
    "experiment=digits_quickstart", "trainer=cpu", "trainer.enable_progress_bar=false", "num_experts=2",
    "network.width=8", "network.depth=1", "data.per_class=20", "data.validation_fraction=0.2", "expert.epochs=4",
    "expert.lr_decay_epoch=1", "distill.ipc=2", "distill.batch_syn=7", "distill.syn_steps=4",
    "distill.max_start_epoch=2", "distill.max_steps=14", "distill.eval_every=4", "distill.save_every=3",
    "evaluation.epochs=3", "evaluation.networks=2", "evaluation.at_once=2",
)  # fmt: skip
SCRIPTS = {"experts": "train_experts", "distillation": "distill", "evaluation": "evaluate"}
BEFORE = {"experts": [], "distillation": ["experts"], "evaluation": ["experts", "distillation"]}


@dataclass
class Tally:
    """What happened to one command."""

    kills: int = 0
    resumed: int = 0
    chains: int = 0
    different: list[str] = field(default_factory=list)


class Bench:
    """A folder in which commands are killed; always the same path, because results record it.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.log = folder / "log"
        self._ready = folder / "ready"

    def call(self, command: str, *, fatal: int | None = None, seconds: float | None = None) -> Outcome:
        words = [*WORDS, f"output_dir={self.output}"]
        return run(SCRIPTS[command], words, self.log, fatal=fatal, seconds=seconds)

    def reset(self, command: str) -> None:
        """Give the output folder what the commands before ``command`` leave."""
        shutil.rmtree(self.output, ignore_errors=True)
        if BEFORE[command]:
            shutil.copytree(self._ready / BEFORE[command][-1], self.output, symlinks=True)

    def keep(self, command: str) -> None:
        """Remember the output folder as what ``command`` leaves."""
        shutil.copytree(self.output, self._ready / command, symlinks=True)


def reference(bench: Bench, command: str, as_a_script: bool) -> tuple[dict[str, str], Outcome]:
    """What an uninterrupted run leaves; with ``as_a_script``, two of them: one in a process of nothing else."""
    bench.reset(command)
    outcome = bench.call(command)
    if outcome.status != 0:
        raise SystemExit(f"{command} does not even run uninterrupted:\n{outcome.output}")
    expected = contents(bench.output)
    if as_a_script:
        bench.reset(command)
        words = [sys.executable, f"{SCRIPTS[command]}.py", *WORDS, f"output_dir={bench.output}"]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
        if differences(expected, contents(bench.output)):
            raise SystemExit(
                f"{command}: two uninterrupted runs differ: {differences(expected, contents(bench.output))}"
            )
    bench.keep(command)
    return expected, outcome


def kill_and_resume(bench: Bench, command: str, kills: int, draw: random.Random, as_a_script: bool) -> Tally:
    """Chains of kills; see the module."""
    expected, whole = reference(bench, command, as_a_script)
    tally = Tally()
    while tally.kills < kills:
        bench.reset(command)
        tally.chains += 1
        while True:
            if tally.kills >= kills:
                outcome = bench.call(command)
            elif draw.random() < 0.25:
                outcome = bench.call(command, seconds=draw.uniform(0, whole.seconds))
            else:
                outcome = bench.call(command, fatal=draw.randint(1, max(whole.instants // 3, 1)))
            if outcome.status != -9:
                break
            tally.kills += 1
        if outcome.status != 0:
            raise SystemExit(f"{command} did not go on after {tally.kills} kills:\n{outcome.output}")
        tally.resumed += 1
        tally.different += differences(expected, contents(bench.output))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--commands", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), help="those that are killed")
    parser.add_argument("--scripts", action="store_true", help="compare also with scripts that are run by themselves")
    arguments = parser.parse_args()
    prepare()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for command in SCRIPTS:
            kills = arguments.kills if command in arguments.commands else 0
            tally = kill_and_resume(bench, command, kills, random.Random(arguments.seed), arguments.scripts)
            if kills:
                verdict = "all identical" if not tally.different else f"different: {tally.different}"
                print(
                    f"{command}: {tally.kills} kills in {tally.chains} runs, {tally.resumed} ended, {verdict}",
                    flush=True,
                )
            failed |= bool(tally.different)
    sys.exit(failed)


if __name__ == "__main__":
    main()
