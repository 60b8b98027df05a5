"""The check of a machine: what is wrong shows, and sets the status."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.check import checks, ranks
from ast_lightning.check.__main__ import main
from ast_lightning.check.checks import Check, Skipped, all_checks, run_check
from ast_lightning.distillation.trajectory_matching import adjoint
from tests import PATIENCE
from tests.forks import python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def fails(error: Exception) -> Callable[[], str]:
    def run() -> str:
        raise error

    return run


def outcome(name: str) -> tuple[str, str]:
    (check,) = [each for each in all_checks() if (each.name, each.device) == (name, "cpu")]
    result = run_check(check)
    return result["outcome"], result["detail"]


def test_outcomes_of_a_check() -> None:
    results = [
        run_check(Check("one", "cpu", run))
        for run in (lambda: "fine", fails(Skipped("no such thing")), fails(ValueError("two\n  lines")))
    ]
    assert [(each["outcome"], each["detail"]) for each in results] == [
        ("ok", "fine"),
        ("skipped", "no such thing"),
        ("failed", "ValueError: two lines"),
    ]


def test_a_failed_check_is_in_the_table_and_sets_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [Check("good", "cpu", lambda: "fine"), Check("bad", "cuda:1", fails(RuntimeError("no kernel [image]")))]
    monkeypatch.setattr(checks, "all_checks", lambda quick: listed)
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert "no kernel" in printed
    assert "1 of 2 checks failed" in printed
    assert main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 1
    assert [(each["check"], each["device"], each["outcome"]) for each in found["checks"]] == [
        ("good", "cpu", "ok"),
        ("bad", "cuda:1", "failed"),
    ]
    listed.pop()
    assert main([]) == 0
    assert "nothing failed" in capsys.readouterr().out


def test_a_quick_check_neither_compiles_nor_starts_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--json"]) == 0
    found = {(each["check"], each["device"]): each for each in json.loads(capsys.readouterr().out)["checks"]}
    for name in ("bf16", "expert step", "distillation, float64", "distillation, float32"):
        assert found[name, "cpu"]["outcome"] == "ok", found[name, "cpu"]
    left_out = ("expert step, compiled", "distillation, compiled", "DDP, gloo")
    assert not {name for name, _ in found} & set(left_out)
    assert {check.name for check in all_checks()} >= set(left_out)


def test_a_derivative_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adjoint.walk_back
    assert outcome("distillation, float64")[0] == "ok"

    def wrong(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if each is None else 1.0001 * each for each in right(ctx, *cotangents))

    monkeypatch.setattr(adjoint, "walk_back", wrong)
    assert outcome("distillation, float64") == (
        "failed",
        "RuntimeError: the adjoint, against autograd is off by 1.0e-04, and 1e-09 is allowed",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    checks._reference("expert")
    right = checks.expert_gradient
    monkeypatch.setattr(checks, "expert_gradient", lambda *args, **options: value * right(*args, **options))
    assert outcome("expert step")[0] == "failed"


def test_every_gpu_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(count: int) -> Sequence[Check]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return all_checks()

    names = {each.name for each in rows(0) if each.device == "cpu"} - {"DDP, gloo"}
    for device in ("cuda:0", "cuda:1"):
        assert {each.name for each in rows(2) if each.device == device} == names
    for count in (0, 1):
        found = run_check(rows(count)[-1])
        assert (found["check"], found["outcome"]) == ("DDP, nccl", "skipped")
        assert "two GPUs" in found["detail"]


def test_processes_that_fail_or_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that do are in the whole check below."""
    with pytest.raises(RuntimeError, match=r"^process \d: .*no_such_backend"):
        ranks.gradient_error("no_such_backend", ["cpu", "cpu"])
    with pytest.raises(RuntimeError, match="2 processes did not answer within 0 s"):
        ranks.gradient_error("gloo", ["cpu", "cpu"], patience=0.01)


def test_the_whole_check_of_this_machine() -> None:
    words = [*python(), "-m", "ast_lightning.check", "--json"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    found = json.loads(result.stdout)
    assert result.returncode == 0, found
    assert found["failed"] == 0
    (ddp,) = [each for each in found["checks"] if each["check"] == "DDP, gloo"]
    assert ddp["outcome"] == "ok"
    assert float(ddp["detail"].split()[-1]) < 1e-12
