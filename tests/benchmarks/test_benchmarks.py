"""The benchmarks measure what they say; no figure of theirs is tested."""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import pytest
import torch

from benchmarks import arguments, data, evaluation, experts, methods, scaling, stacked
from benchmarks import unroll as unrolls
from benchmarks.arguments import Size
from benchmarks.convolutions import convolutions_alone, count_operations
from benchmarks.measure import Step, Timing, Variant, interleaved, peak_memory, time_table

pytestmark = pytest.mark.slow

MEGABYTES = 200


def sleeps(seconds: float) -> Step:
    return functools.partial(time.sleep, seconds)


def allocates() -> Step:
    return lambda: torch.ones(MEGABYTES * 10**6 // 4).sum()


def test_rounds_are_counted_and_compared() -> None:
    timings = interleaved(
        [Variant("slow", functools.partial(sleeps, 0.2)), Variant("fast", functools.partial(sleeps, 0.01))], 3
    )
    assert [len(each.rounds) for each in timings] == [3, 3]
    assert timings[0].median >= 0.2
    assert 0.01 <= timings[1].median < 0.2


def test_the_table_compares_medians_with_the_first() -> None:
    table = time_table([Timing("one", 9.0, [4.0, 2.0, 3.0]), Timing("two", 5.0, [1.0, 1.5, 2.0])])
    assert table.splitlines()[2:] == ["| one | 3 | 2 | 1.00 | 9 |", "| two | 1.5 | 1 | 2.00 | 5 |"]


def test_peak_memory_is_what_a_step_adds() -> None:
    assert MEGABYTES <= peak_memory(Variant("allocates", allocates)) / 1e6 < 1.5 * MEGABYTES


def test_a_failing_variant_is_named() -> None:
    with pytest.raises(SystemExit, match="'broken' failed"):
        interleaved([Variant("broken", functools.partial(int, "x"))], 1)


def test_variants_of_the_unroll_compute_the_same() -> None:
    tiny = functools.partial(unrolls.Iteration, 2, 2, width=4)
    expected = tiny("autograd").build()()
    for other in (tiny(), tiny(recompute=True), tiny("autograd")):
        for seen, wanted in zip(other.build()(), expected, strict=True):
            torch.testing.assert_close(seen, wanted, rtol=1e-3, atol=1e-6)
            assert wanted.abs().sum() > 0


def test_operations_of_a_convolution() -> None:
    """2 · 3² · 3 · 4 · 8² · N for a convolution of 3 to 4 channels that keeps 8×8 pixels."""
    layer, images = torch.nn.Conv2d(3, 4, 3, padding=1), torch.ones(5, 3, 8, 8)
    step = convolutions_alone(lambda: lambda: layer(images), repeat=2)
    assert count_operations(step) == 2 * (2 * 9 * 3 * 4 * 64 * 5)


@pytest.mark.parametrize("eased", [True, False])
def test_the_expert_step_trains(eased: bool) -> None:
    step = experts.ExpertStep(4, eased=eased, width=4).build()
    step()


def test_the_evaluation_runs() -> None:
    evaluation.Evaluation(10, 8, 1, 4, 1, at_once=2, networks=2, epochs=1)()()


def test_a_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Size] = []

    def report(size: Size) -> list[str]:
        seen.append(size)
        return ["### One", "| a |"]

    words = ["--small", "--rounds", "2", "--output", str(tmp_path / "new" / "table.md")]
    arguments.run(report, "What it is.\n\nMore.", words)
    assert seen == [Size(True, 2, "cpu")]
    text = (tmp_path / "new" / "table.md").read_text()
    assert text.endswith("### One\n\n| a |\n")
    assert f"torch {torch.__version__}" in text
    assert capsys.readouterr().out.startswith(text)


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.run(lambda size: [], "x", ["--rounds", "0"])
    assert "--rounds=0 must be at least 1" in capsys.readouterr().err


def test_stacked_experts_take_the_same_steps() -> None:
    tiny = functools.partial(stacked.FourSteps, compiled=False, batch=4, side=8, channels=1, width=4, depth=1)
    expected = tiny(0).build()()
    for at_once in (2, 4):
        torch.testing.assert_close(tiny(at_once).build()(), expected, rtol=1e-4, atol=1e-6)


def test_costs_follow_from_the_pieces() -> None:
    """A hundred images, K = 20, 10⁹ operations an image: 2 · 10¹² operations, 0.2 s at 10¹³ a second."""
    keys = {(setting.network, setting.side) for setting in scaling.SETTINGS}
    measured = dict.fromkeys(keys, scaling.Pieces(1_000_000, 1e9, 2e9, 5e6, 1e11, 1e11))
    first = scaling.iteration_table(measured).splitlines()[2]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[5:] == ["2.0e+12", "0.2 s", "500 MB", "80 MB", "3.69 MB", "16 MB", "1.23 MB", "160 MB"]
    experts_row = scaling.experts_table(measured).splitlines()[2]
    assert "| 5.0e+15 | 0.14 | 14 | 20.4 GB | 10.2 GB | 5.2 GB |" in experts_row


def test_operations_of_an_image_do_not_depend_on_the_batch() -> None:
    setting = scaling.SETTINGS[0]
    counts = [scaling._operations(scaling.ExpertStep(setting, batch)) / batch for batch in (1, 3)]
    assert counts[0] == pytest.approx(counts[1])
    assert counts[0] > 1e8


def options_of(folder: Path, *overrides: str) -> argparse.Namespace:
    sizes = {"steps": 2, "networks": 1, "seeds": 1, "trainer": "cpu", "fashion_mnist": None, "cifar10": None}
    return argparse.Namespace(folder=folder, overrides=overrides, **sizes)


def test_methods_share_experts(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    cell = methods.cells(options)[0]
    runs = {each: methods.run_of(methods.Arm(cell, each, methods.UNTUNED), 0, options) for each in methods.METHODS}
    stores = {name: run.experts_folder() for name, run in runs.items() if methods.uses_experts(run)}
    groups = (("ast",), ("mtt", "tesla", "att", "mct"), ("ftd", "datm"), ("pad",))
    assert [[name for name in stores if stores[name] == stores[group[0]]] for group in groups] == list(
        map(list, groups)
    )
    assert len({run.evaluation for run in runs.values()}) == 1
    assert {(run.distill.outer, run.distill.lr_img) for run in runs.values()} == {("normalized", 0.2)}


def test_published_steps() -> None:
    """Those of CIFAR-10, at one image per class where the other row is not published."""
    common = ("distill.outer=sgd", "distill.schedule=constant", "distill.alpha=raw")
    step = (*common, "distill.lr_img=100.0", "distill.lr_lr=1e-05", "distill.lr_labels=2.0", "distill.max_loss=1.0")
    assert methods.published_step("datm", 10) == step
    assert methods.published_step("tesla", 10) == (*common, "distill.lr_img=1000.0", "distill.lr_lr=1e-07")
    assert methods.published_step("dm", 10) == ("distill.outer=sgd", "distill.lr_img=1.0")


def test_an_expert_is_trained_once_and_a_finished_run_is_read(tmp_path: Path) -> None:
    words = ("num_experts=1", "expert.epochs=3", "network.width=2", "data.per_class=20", "evaluation.epochs=1")
    options = options_of(tmp_path, *words, "distill.syn_steps=2")
    cell = methods.cells(options)[0]
    found = []
    for method in ("mtt", "att", "mtt"):
        arm = methods.Arm(cell, method, methods.UNTUNED)
        methods.experts_of(arm, 0, options)
        run = methods.run_of(arm, 0, options)
        assert [each["trained"] for each in methods.expert_times(run, options)] == [1]
        found.append(methods.outcome_of(arm, 0, options))
    assert found[0] == found[2]
    assert found[0].experts == found[1].experts > 0
    assert found[0].seconds > 0
    row = methods.row_of(methods.Arm(cell, "mtt", methods.UNTUNED), found[:1])
    assert (row[:3], row[5]) == (["digits, 1", "mtt", "untuned"], "–")


def test_an_epoch_is_every_image_read_from_the_cache_or_memory(tmp_path: Path) -> None:
    for preload in (0, 1024):
        assert data.Epoch(str(tmp_path), 300, 8, preload)()() == 300
