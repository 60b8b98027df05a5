"""Atomic writing: after any failure the old content is there whole, and nothing lies about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ast_lightning.storage.files import (
    clear_leftovers,
    format_bytes,
    point_to,
    read_json,
    set_aside,
    write_bytes,
    write_file,
    write_folder,
    write_json,
    write_tensors,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing_replace(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Let the ``at_call``-th rename from now on fail, as a full or vanished disk makes it."""
    real, calls = os.replace, []

    def replace(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == at_call:
            raise OSError("disk trouble")
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)


def test_write_bytes_makes_folders_and_leaves_one_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.bin"]


def test_write_bytes_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    failing_replace(monkeypatch, at_call=1)
    with pytest.raises(OSError, match="disk trouble"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"μ": [1, 2.5, None, True], "nested": {"text": "ä\n"}, "tiny": 1e-300, "third": 1 / 3}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "μ" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", [object()])
    assert read_json(tmp_path / "x.json") == [1]
    assert names(tmp_path) == ["x.json"]


def test_tensors_round_trip_with_metadata(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {"strided": base.T, "graph": (base * 2).requires_grad_(), "whole": torch.tensor([3, -1])}
    write_tensors(tmp_path / "t.safetensors", tensors, {"made": "by hand"})
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"made": "by hand"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor.detach())


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"bytes": torch.arange(3, dtype=torch.uint8), "numbers": torch.arange(4.0)}
    about = {name: name.upper() for name in "heiß"}
    files = []
    for number in range(20):
        write_tensors(tmp_path / str(number), tensors, about)
        files.append((tmp_path / str(number)).read_bytes())
    assert len(set(files)) == 1
    assert int.from_bytes(files[0][:8], "little") % 8 == 0
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == about
        assert torch.equal(file.get_tensor("numbers"), tensors["numbers"])


def test_write_folder_makes_the_folder_whole(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def fill(folder: Path) -> None:
        (folder / "one").write_text("1")
        seen.append(names(tmp_path))
        (folder / "two").write_text("2")

    write_folder(tmp_path / "deep" / "result", lambda folder: fill(folder))
    assert names(tmp_path / "deep" / "result") == ["one", "two"]
    assert names(tmp_path / "deep") == ["result"]
    assert seen == [["deep"]]


def test_write_folder_replaces_the_old_folder_only_when_the_new_one_is_full(tmp_path: Path) -> None:
    result = tmp_path / "result"
    write_folder(result, lambda folder: (folder / "old").write_text("x") and None)

    def fill(folder: Path) -> None:
        assert folder != result
        assert names(result) == ["old"]
        assert names(folder) == []
        (folder / "new").write_text("y")
        assert names(result) == ["old"]

    write_folder(result, fill)
    assert names(result) == ["new"]
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_write_folder_cleans_up_when_fill_raises(tmp_path: Path, exists: bool, error: type[BaseException]) -> None:
    result = tmp_path / "result"
    if exists:
        write_folder(result, lambda folder: (folder / "old").write_text("x") and None)

    def fill(folder: Path) -> None:
        (folder / "half").write_text("y")
        raise error

    with pytest.raises(error):
        write_folder(result, fill)
    assert names(tmp_path) == (["result"] if exists else [])
    if exists:
        assert names(result) == ["old"]


@pytest.mark.parametrize("at_call", [1, 2])
def test_write_folder_keeps_the_old_folder_when_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    result = tmp_path / "result"
    write_folder(result, lambda folder: (folder / "old").write_text("x") and None)
    failing_replace(monkeypatch, at_call)
    with pytest.raises(OSError, match="disk trouble"):
        write_folder(result, lambda folder: (folder / "new").write_text("y") and None)
    assert result.exists(), f"the old content is gone from its place; left are {names(tmp_path)}"
    assert names(result) == ["old"]
    assert names(tmp_path) == ["result"]


def test_leftovers_of_killed_writers_go_and_what_they_moved_aside_returns(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.ab12.partial").write_bytes(b"half")
    (tmp_path / ".set.cd34.partial").mkdir()
    (tmp_path / ".last.partial").symlink_to("nowhere")
    for name in (".set.cd34.old", ".kept.ef56.old", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["kept", "set"]
    assert (tmp_path / "set" / "content").read_text() == ".set.cd34.old"
    assert (tmp_path / "kept" / "content").read_text() == "kept"
    clear_leftovers(tmp_path / "missing")


def test_set_aside_never_overwrites(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "run") is None
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "content").write_text(str(number))
        assert set_aside(tmp_path / "run") == tmp_path / "earlier" / f"run_{number}"
    assert (tmp_path / "earlier" / "run_1" / "content").read_text() == "1"
    assert names(tmp_path) == ["earlier"]


def test_write_file_keeps_what_it_replaces(tmp_path: Path) -> None:
    path, kept = tmp_path / "last", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        write_file(path, lambda stream, content=content: stream.write(content), keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"2")
    assert names(tmp_path) == ["last", "previous"]


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_new_files_and_folders_honour_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"1")
        write_folder(tmp_path / "folder", lambda folder: (folder / "content").write_text("1") and None)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_point_to_is_relative_and_replaces(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    link = tmp_path / "last"
    point_to(link, tmp_path / "one")
    point_to(link, tmp_path / "two")
    assert (link / "content").read_text() == "two"
    assert os.readlink(link) == "two"
    assert names(tmp_path) == ["last", "one", "two"]
    assert (tmp_path / "one" / "content").exists()  # the link was replaced, not followed
    moved = tmp_path.with_name(tmp_path.name + "_moved")
    tmp_path.rename(moved)
    assert (moved / "last" / "content").read_text() == "two"


def test_point_to_moves_a_folder_in_its_place_aside(tmp_path: Path) -> None:
    """What ``cp -rL`` makes of a link."""
    for name in ("last", "one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    point_to(tmp_path / "last", tmp_path / "one")
    assert os.readlink(tmp_path / "last") == "one"
    assert (tmp_path / "earlier" / "last_1" / "content").read_text() == "last"


def test_point_to_gets_over_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / ".last.partial").symlink_to("nowhere")
    (tmp_path / "one").mkdir()
    point_to(tmp_path / "last", tmp_path / "one")
    assert names(tmp_path) == ["last", "one"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (1.5 * 1024**3, "1.5 GiB"),
        (5 * 1024**4, "5120.0 GiB"),
    ],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**45))
def test_formatted_bytes_read_back_to_within_their_rounding(count: int) -> None:
    number, unit = format_bytes(count).split()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert abs(float(number) * scale - count) <= 0.0501 * scale
