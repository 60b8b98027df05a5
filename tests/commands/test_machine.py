"""What a run asks of the machine: recorded choices, precision, and refusals."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ast_lightning.commands.run import Run
from ast_lightning.commands.stores import choose_compilation
from ast_lightning.commands.train_experts import _objective
from ast_lightning.compilation import Compilation
from ast_lightning.distillation.trajectory_matching.method import forward_passes
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel.devices import device_type
from ast_lightning.runs.machine import keep_freed_memory, prepare
from ast_lightning.synthetic import load_distilled
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Command, run_of


@pytest.fixture(autouse=True)
def precision_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_holds_for_products_and_convolutions(tf32: bool) -> None:
    prepare({"accelerator": "cpu"}, tf32=tf32)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.slow
def test_what_changes_numbers_is_in_the_name_of_a_run() -> None:
    words = ([], ["tf32=true"], ["trainer.precision=64-true"], ["+trainer.gradient_clip_val=1"])
    runs = [run_of(*SMALL, *each) for each in words]
    assert len({run.experts_folder() for run in runs}) == len({run.distill_folder() for run in runs}) == len(words)
    for long, short in (("32-true", "32"), ("32-true", "null"), ("64-true", "64"), ("bf16-mixed", "bf16")):
        named = [run_of(*SMALL, f"trainer.precision={name}") for name in (long, short)]
        assert named[0].experts_folder() == named[1].experts_folder()
        assert named[1].config["trainer"]["precision"] == long


def test_memory_is_kept_on_glibc() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_the_device_is_one_that_is_there() -> None:
    assert device_type({"accelerator": "cpu"}) == "cpu"
    assert (device_type({"accelerator": "auto"}) == "cuda") == torch.cuda.is_available()
    assert torch.zeros(1, device=device_type({})).device.type == device_type({})


def compile_experts(run: Run) -> Compilation:
    return _objective(run).compilation


def compile_student(run: Run, images: int) -> Compilation:
    return choose_compilation(run, forward_passes(run.distill, images, 1))


def test_the_choice_follows_from_the_configured_length(capsys: pytest.CaptureFixture[str]) -> None:
    long = (
        "network.width=64",
        "distill.max_steps=5000000",
        "distill.syn_steps=50",
        "num_experts=100000",
        "expert.epochs=20",
    )
    for words, enabled in (((), False), (long, True)):
        run = run_of(*SMALL, *words)
        run.data.setup("fit")
        assert compile_experts(run).enabled == enabled
        assert compile_student(run, 10).enabled == enabled
        one = run_of(*SMALL, *words, "expert_index=0")
        one.data.setup("fit")
        assert compile_experts(one) == compile_experts(run)
    assert "compile: on (auto: a run of about" in capsys.readouterr().out
    run = run_of(*SMALL, *long, "compile=false")
    run.data.setup("fit")
    assert not compile_student(run, 10).enabled
    run = run_of(*SMALL, *long, "trainer.fast_dev_run=true")
    run.data.setup("fit")
    assert "fast_dev_run" in compile_experts(run).reason


def test_the_choice_is_recorded(output: Path, command: Command) -> None:
    command("distill", output, "distill.lr_img=0.77", "compile=false")
    folder = run_of(*SMALL, f"output_dir={output}", "distill.lr_img=0.77").distill_folder()
    assert json.loads((folder / "machine.json").read_text())["compile"] == "off (compile=false)"


@pytest.mark.slow
def test_compiled_commands_find_the_same_images(output: Path, command: Command, tmp_path: Path) -> None:
    words = ("compile=true", "num_experts=1", "distill.max_start_epoch=2")
    command("train_experts", tmp_path, *words)
    compiled = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}", *words).experts_folder())
    plain = TrajectoryStore.open(run_of(*SMALL, f"output_dir={output}").experts_folder())
    assert compiled.summary(0)["compile"] == "on (compile=true)"
    torch.testing.assert_close(compiled.read_window(0, 0, 4), plain.read_window(0, 0, 4), rtol=1e-3, atol=1e-4)
    found = []
    for choice in ("true", "false"):
        words = (f"compile={choice}", f"experts_dir={plain.folder}", f"output_dir={tmp_path / choice}")
        command("distill", tmp_path / choice, *words)
        found.append(load_distilled(run_of(*SMALL, *words).synthetic_folder()).images)
    assert not torch.equal(found[0], torch.zeros_like(found[0]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "16-true"])
def test_sixteen_bits_are_refused(precision: str, output: Path, command: Command) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"trainer.precision={precision}: .*16 bits are too coarse for its updates.*experts_dir=",
    ):
        command("distill", output, f"trainer.precision={precision}")
    with pytest.raises(ConfigurationError, match=rf"trainer.precision={precision}: evaluation needs.*32-true"):
        command("evaluate", output, f"trainer.precision={precision}")


@pytest.mark.parametrize("name", ["train_experts", "distill"])
def test_another_choice_is_refused(name: str, tmp_path: Path, command: Command) -> None:
    with pytest.raises(ConfigurationError, match=r"compile=maybe: .*auto, true or false"):
        command(name, tmp_path, "compile=maybe")
    assert not list(tmp_path.iterdir())
