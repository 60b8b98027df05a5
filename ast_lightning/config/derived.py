"""Options that are computed from others if they are null, before folders are named and work begins."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ast_lightning.config.schedule import Schedule
from ast_lightning.storage.reading import BROKEN

Config = Mapping[str, Any]


def derived_options(config: Config, given: Config) -> dict[str, float | str]:
    """The values of options that are null, by name. Each may depend on those before it.

    Args:
        config: all sections, checked; options that are null have the values that follow from their section alone.
        given: the sections ``distill`` and ``evaluation`` as they were composed.
    """
    sections = {name: dict(config[name]) for name in ("distill", "evaluation", "expert")}
    sections["expert"].update(_recorded_expert(config.get("experts_dir")))
    derived = {}
    for option, rule in RULES.items():
        section, _, name = option.partition(".")
        if name in sections[section] and given[section].get(name) is None:
            sections[section][name] = derived[option] = rule(**sections)
    return derived


def window_epochs(distill: Config, expert: Config, **others: Config) -> int:
    """M: 2 epochs, rounded up to a multiple of ``every_n_epochs``, and at most the last stored epoch."""
    schedule = _schedule(expert)
    every = schedule.every_n_epochs
    return max(every, min(every * math.ceil(2 / every), schedule.last))


def start_epochs(distill: Config, expert: Config, **others: Config) -> int:
    """T⁺: E · (0.25 + 0.25 · log10 ipc) epochs, reduced if windows of M epochs would exceed the trajectory."""
    schedule = _schedule(expert)
    wanted = math.floor(schedule.epochs * (0.25 + 0.25 * math.log10(distill["ipc"])) + 0.5)
    return max(1, min(wanted, schedule.last - distill["expert_epochs"] + schedule.every_n_epochs))


def inner_steps(distill: Config, **others: Config) -> int:
    """K: 20, or M if M is larger."""
    return max(20, int(distill["expert_epochs"]))


def student_rate(distill: Config, expert: Config, **others: Config) -> float:
    """Initial α: the experts' learning rate · (1 + log10 ipc); 0.01 for methods without a student."""
    rate: float = expert["lr"] * (1 + math.log10(distill["ipc"]))
    return (round(rate, 8) or rate) if "syn_steps" in distill else 0.01


def evaluation_epochs(distill: Config, **others: Config) -> int:
    """6 / α epochs, at least 300 and at most the published 1000."""
    return min(1000, max(300, round(6 / distill["lr_teacher"])))


RULES: dict[str, Callable[..., float | str]] = {
    "distill.expert_epochs": window_epochs,
    "distill.max_start_epoch": start_epochs,
    "distill.syn_steps": inner_steps,
    "distill.lr_teacher": student_rate,
    "distill.schedule": lambda distill, **others: distill["schedule"],
    "distill.lr_img": lambda distill, **others: distill["lr_img"],
    "distill.alpha": lambda distill, **others: distill["alpha"],
    "distill.lr_lr": lambda distill, **others: distill["lr_lr"],
    "evaluation.epochs": evaluation_epochs,
}


def _schedule(expert: Config) -> Schedule:
    return Schedule(expert["epochs"], expert["every_n_epochs"], expert["max_epoch"])


def _recorded_expert(folder: str | None) -> dict[str, Any]:
    """The expert options recorded in ``experts_dir``; empty if it cannot be read, which is reported later."""
    recorded: dict[str, Any] = {}
    if folder:
        with contextlib.suppress(OSError, *BROKEN):
            store = json.loads((Path(folder).expanduser() / "store.json").read_text(encoding="utf-8"))
            recorded = {**(store.get("expert") or {}), "epochs": int(store["epochs"])}
    return {name: value for name, value in recorded.items() if name in ("epochs", "every_n_epochs", "max_epoch", "lr")}
