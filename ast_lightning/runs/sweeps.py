"""One table for a multirun: settings and results of every job."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from ast_lightning.files import read_json, write_bytes, write_json


def sweep_name(arguments: Sequence[str] | None = None) -> str:
    """The folder name of a multirun, which follows from its command line: the same sweep finds its own folder again."""
    words = sys.argv if arguments is None else arguments
    text = " ".join([Path(words[0]).stem, *sorted(words[1:])])
    return f"{Path(words[0]).stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class SweepTable(Callback):
    """Collects what the jobs of a multirun return into ``<hydra.sweep.dir>/results.csv``.

    A row has the job's number, its status, its overrides, and the numbers that the command returned.
    """

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        shutil.rmtree(_jobs(config), ignore_errors=True)

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        if str(config.hydra.mode).endswith("MULTIRUN"):
            failed = job_return.status.name != "COMPLETED"
            returned = {} if failed else dict(job_return.return_value or {})
            settings = dict(override.split("=", 1) for override in job_return.overrides)
            row = {
                "job": config.hydra.job.num,
                "status": job_return.status.name.lower(),
                **settings,
                **returned,
            }
            write_json(_jobs(config) / f"{int(config.hydra.job.num):04d}.json", row)
            _write_table(config)  # Hydra skips the end of a multirun in which a job failed

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        count = _write_table(config)
        print(f"settings and results of {count} jobs: {_table(config)}")


def _write_table(config: Any) -> int:
    rows = [read_json(path) for path in sorted(_jobs(config).glob("*.json"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(_table(config), text.getvalue().encode())
    return len(rows)


def _table(config: Any) -> Path:
    return Path(config.hydra.sweep.dir) / "results.csv"


def _jobs(config: Any) -> Path:
    return Path(config.hydra.sweep.dir) / "jobs"
