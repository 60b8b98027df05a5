"""One table for a multirun: the settings and results of all jobs, which may run in different processes."""

from __future__ import annotations

import atexit
import csv
import hashlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from ast_lightning.config.composition import choices_of_groups, hide_deprecations
from ast_lightning.errors import ConfigurationError, DistillationDiverged, printable
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.reporting import boundary, outcome
from ast_lightning.runs.output import prepare_output
from ast_lightning.storage.files import read_json, write_bytes, write_json
from ast_lightning.sweeps.searches import WORST, check_multirun, is_search, objective
from ast_lightning.sweeps.tasks import join_tasks, number_of_task

Row = dict[str, Any]

_ENDED = "it was ended before it finished: interrupted, killed, or out of memory"


def sweep_name(arguments: Sequence[str] | None = None) -> str:
    """The folder name of a multirun. It depends only on the command line: rerunning a sweep uses the same folder."""
    words = sys.argv if arguments is None else arguments
    text = " ".join([Path(words[0]).stem, *sorted(words[1:])])
    return f"{Path(words[0]).stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# Registered here, because the processes of a launcher import this module with the callback, but not the script. They
# use the value that Hydra stored when the multirun began.
with warnings.catch_warnings():
    hide_deprecations()
    OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("choices", choices_of_groups, replace=True)
    OmegaConf.register_new_resolver("expanduser", lambda folder: os.path.expanduser(str(folder)), replace=True)


class SweepTable(Callback):
    """Collects the results of a multirun's jobs in ``<hydra.sweep.dir>/results.csv``.

    A row has the job's number, its status, its overrides, the numbers that the command returned, and the error of a job
    that failed. Each job writes its row and then the table, in its own process: the table exists even if the process
    that started the multirun is killed.

    A failed job does not stop the others. In a search, its trial counts as failed. A trial that diverged gets the worst
    objective instead, so that the sweeper proposes such settings less often. At the end the failures are printed, and
    the exit status is 1.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self.script = ""
        self._lock: FolderLock | None = None

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        with boundary():
            check_multirun(config)
            prepare_output(Path(config.output_dir))
        self.folder = Path(config.hydra.sweep.dir)
        self.script = Path(sys.argv[0]).name
        shutil.rmtree(self._jobs, ignore_errors=True)
        atexit.register(self._finish)  # Hydra skips on_multirun_end if a sweeper or a launcher raises

    def on_job_start(self, config: Any, **_: Any) -> None:
        if not _is_multirun(config):
            return
        join_tasks()  # before torch is imported
        from ast_lightning.parallel.workers import take_gpu
        from ast_lightning.storage.provenance import remember_command

        remember_command([self.script, *config.hydra.overrides.task])
        if "joblib" in str(config.hydra.launcher.get("_target_")):
            trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
            take_gpu(trainer, config.hydra.job.num)
        if number_of_task() == 0:
            self._lock = FolderLock(self._jobs / f"{config.hydra.job.num:04d}")  # held until this process ends
            self._lock.take()
            self._write_row(_row(config, "running"))

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        if not _is_multirun(config):
            return
        results, error = _outcome(config, job_return)
        message = "" if error is None else outcome(error)[0]
        if message:
            print(f"job {config.hydra.job.num} failed: {message}", file=sys.stderr, flush=True)
        if number_of_task() == 0:
            self._write_row(_row(config, "failed" if message else "completed", results, message))
            self._write_table()
            if self._lock is not None:
                self._lock.release()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        if not self.script:  # on_multirun_start has rejected the multirun; Hydra 1.4 calls this all the same
            return
        atexit.unregister(self._finish)
        if not self._finish():
            raise SystemExit(1)

    @property
    def _jobs(self) -> Path:
        return self.folder / "jobs"

    def _write_row(self, row: Row) -> None:
        write_json(self._jobs / f"{row['job']:04d}.json", row)

    def _write_table(self) -> list[Row]:
        """Write all existing rows to the table and return them; after the last job, the table is complete."""
        with FolderLock(self.folder / "results.csv") as lock:
            lock.take(seconds=-1)
            rows = sorted((read_json(path) for path in self._jobs.glob("*.json")), key=lambda row: int(row["job"]))
            if rows:
                write_bytes(self.folder / "results.csv", _as_csv(rows).encode())
        return rows

    def _finish(self) -> bool:
        """Write the final table; print its path and the failed jobs.

        Returns:
            Whether every job completed.
        """
        if self._lock is not None:
            self._lock.release()
        try:
            for path in sorted(self._jobs.glob("*.json")):
                self._settle(path)
            rows = self._write_table()
        except OSError as error:  # Hydra would turn it into a warning, and end with status 0
            print(f"error: {self.folder / 'results.csv'} cannot be written: {error}", file=sys.stderr, flush=True)
            return False
        if rows:
            print(f"settings and results of {len(rows)} jobs: {self.folder / 'results.csv'}", flush=True)
        failures = [row for row in rows if row["status"] != "completed"]
        if failures:
            print(f"error: {len(failures)} of {len(rows)} jobs did not complete", file=sys.stderr)
        for row in failures:
            line = printable(f"  job {row['job']} ({_differing(row, rows)}): {row['error']}")
            print(line, file=sys.stderr, flush=True)
        return not failures

    def _settle(self, path: Path) -> None:
        """Complete the row of a job that did not write its final row."""
        with FolderLock(path.with_suffix("")) as lock:
            gone = lock.take()
            row = read_json(path)
            if row["status"] == "running":
                outcome = {"status": "failed", "error": _ENDED} if gone else {"error": "it is still running"}
                self._write_row(row | outcome)


def _is_multirun(config: Any) -> bool:
    return str(config.hydra.mode).endswith("MULTIRUN")


def _row(config: Any, status: str, results: Row | None = None, error: str = "") -> Row:
    settings = {}
    for override in config.hydra.overrides.task:
        name, _, value = override.partition("=")
        settings[name.lstrip("+")] = value
    number = int(config.hydra.job.num)
    return {"job": number, "status": status, "settings": settings, "results": results or {}, "error": error}


def _outcome(config: Any, job_return: Any) -> tuple[Row, BaseException | None]:
    """The numbers that a job returned, and its error if it failed; in a search, a job without an objective fails.

    ``job_return`` is set to what the sweeper can use, in a form that can be pickled. Hydra's own sweeper gets no
    errors: it would raise the first one and skip the remaining batches.
    """
    value, told = job_return._return_value, None  # the property return_value raises the error of a failed job
    results, error = (dict(value or {}), None) if job_return.status == JobStatus.COMPLETED else ({}, value)
    if is_search(config) and number_of_task() == 0 and error is None:
        try:
            told = objective(results)
        except ConfigurationError as missing:
            error = missing
    if isinstance(error, DistillationDiverged):
        told = WORST
    failed = is_search(config) and error is not None and told is None
    job_return.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    job_return.return_value = RuntimeError(str(error)) if failed else told if is_search(config) else None
    return results, error


def _as_csv(rows: list[Row]) -> str:
    names = dict.fromkeys(name for part in ("settings", "results") for row in rows for name in row[part])
    text = io.StringIO()
    writer = csv.DictWriter(text, ["job", "status", *names, "error"], restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**row["settings"], **row["results"], **row} for row in rows)
    return text.getvalue()


def _differing(row: Row, rows: list[Row]) -> str:
    """The settings of a job that the others do not share."""
    settings: dict[str, str] = row["settings"]
    own = {name: value for name, value in settings.items() if any(r["settings"].get(name) != value for r in rows)}
    return " ".join(f"{name}={value}" for name, value in own.items()) or "the only settings"
