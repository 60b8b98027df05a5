"""The state of a run: what is read equals what was written, or is named, and the one before it takes its place."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.checkpoints import RunStates


def state(step: int) -> dict[str, Any]:
    return {
        "global_step": step,
        "state_dict": {"x": torch.full((50,), float(step))},
        "loops": {"done": [1, "two", None]},
    }


@pytest.fixture
def states(tmp_path: Path) -> RunStates:
    return RunStates(tmp_path / "checkpoints", {"expert": 3, "store": "abc"})


def step_of(states: RunStates) -> int:
    found = states.find(expected=True)
    assert found is not None
    return int(states.load_checkpoint(found)["global_step"])


def test_what_is_read_is_what_was_written(states: RunStates) -> None:
    assert states.find(expected=False) is None
    for step in (1, 2, 3):
        states.save_checkpoint(state(step), states.last)
    assert states.find(expected=True) == states.last
    read = states.load_checkpoint(states.last, weights_only=False)  # plain data only, whatever is asked for
    assert torch.equal(read["state_dict"]["x"], torch.full((50,), 3.0))
    assert read["loops"] == state(3)["loops"]
    assert sorted(path.name for path in states.folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(states.last, weights_only=True)["global_step"] == 3  # a file of torch.save all the same
    assert torch.load(states.previous, weights_only=True)["global_step"] == 2


def damage(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "zero", "longer"])
    place = draw.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "zero":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    else:
        content += b"\0"
    path.write_bytes(content)


def test_damage_is_found_or_harmless_and_the_state_before_is_taken(
    states: RunStates, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states.save_checkpoint(state(1), states.last)
    states.save_checkpoint(state(2), states.last)
    whole = tmp_path / "whole"
    shutil.copytree(states.folder, whole)
    draw, harmless = random.Random(0), 0
    for _ in range(100):
        shutil.rmtree(states.folder)
        shutil.copytree(whole, states.folder)
        damage(states.last, draw)
        step = step_of(states)
        if step == 2:  # what was changed is padding or a time, which have no checksum and matter to nobody
            assert torch.equal(states.load_checkpoint(states.last)["state_dict"]["x"], state(2)["state_dict"]["x"])
            harmless += 1
        else:
            assert step == 1
    assert harmless < 50
    shutil.rmtree(states.folder)
    shutil.copytree(whole, states.folder)
    states.last.write_bytes(b"")
    assert step_of(states) == 1
    assert "using the previous one" in capsys.readouterr().out
    states.save_checkpoint(state(5), states.last)  # the damaged one does not take the place of the whole one
    assert torch.load(states.previous, weights_only=True)["global_step"] == 1
    assert step_of(states) == 5


def test_nothing_is_begun_anew_over_work_whose_states_are_lost(states: RunStates) -> None:
    with pytest.raises(ConfigurationError, match="there is work, but no checkpoint"):
        states.find(expected=True)
    states.save_checkpoint(state(1), states.last)
    states.last.write_bytes(states.last.read_bytes()[:-5])
    for expected in (True, False):
        with pytest.raises(ConfigurationError, match=r"none of the checkpoints .* fresh=true"):
            states.find(expected=expected)
    with pytest.raises(ConfigurationError, match="truncated"):
        states.load_checkpoint(states.last)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"belongs_to": {"expert": 4, "store": "abc"}}, "was made with expert = 4, and now it is 3"),
        ({"format": 9}, "format.* is 9"),
    ],
)
def test_states_of_others_are_refused_by_name(
    states: RunStates, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    others = RunStates(states.folder, change.get("belongs_to", states.belongs_to))
    if "format" in change:
        monkeypatch.setattr("ast_lightning.runs.checkpoints.FORMAT_VERSION", change["format"])
    others.save_checkpoint(state(1), others.last)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=words):
        states.find(expected=False)


def test_no_object_is_built_from_a_state(states: RunStates, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "made"),))

    states.save_checkpoint({"global_step": 1, "evil": Evil()}, states.last)
    with pytest.raises(ConfigurationError, match="none of the checkpoints"):
        states.find(expected=True)
    assert not (tmp_path / "made").exists()


def test_a_full_disk_leaves_the_earlier_state(states: RunStates, monkeypatch: pytest.MonkeyPatch) -> None:
    states.save_checkpoint(state(1), states.last)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        states.save_checkpoint(state(2), states.last)
    monkeypatch.undo()
    assert step_of(states) == 1
    assert [path.name for path in states.folder.iterdir()] == ["last.ckpt"]


def test_between_the_two_renames_the_state_before_is_found(states: RunStates) -> None:
    states.save_checkpoint(state(1), states.last)
    os.replace(states.last, states.previous)  # what a kill in between leaves
    assert step_of(states) == 1
