"""Files of torch.save: tensors are read, code is named and never run, damage is named; all are written or none."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ast_lightning.errors import ConfigurationError
from ast_lightning.runs.checkpoints import RunStates
from ast_lightning.storage.checksums import Damaged
from ast_lightning.storage.torch_files import (
    check_content,
    fingerprint,
    load_checked,
    load_plain,
    save_together,
)


class Hostile:
    """An object whose unpickling makes a folder."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


CONTENT = [[[torch.arange(6.0).view(2, 3), nn.Parameter(torch.ones(2))], [torch.zeros(2, 3).half(), torch.ones(2)]]]


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_containers_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    read = load_plain(path, "buffers")
    for ours, theirs in zip(CONTENT[0], read[0], strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    check_content(path, "buffers")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, form: str, wrapped: bool) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "a.pt"
    content = [[[torch.ones(2), Hostile(sentinel)]]] if wrapped else Hostile(sentinel)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ConfigurationError) as caught:
        load_plain(path, "buffers")
    assert not sentinel.exists()
    assert str(caught.value).startswith(f"buffers={path}: ")
    if form != "pickle":
        assert "a pickled posix.mkdir, which was not run" in caught.value.problem
    assert "weights_only" not in str(caught.value)  # torch's own words advise to switch the protection off
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert sentinel.exists()  # the file is as hostile as it is meant to be


def test_the_protection_cannot_be_switched_off_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Hostile(tmp_path / "sentinel"), tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="was not run"):
        load_plain(tmp_path / "a.pt", "buffers")
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, -1])
def test_truncated_files_are_named(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ConfigurationError, match=r"a\.pt: it cannot be used"):
        load_plain(path, "buffers")


def test_a_flipped_bit_is_found_where_the_format_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save([torch.full((1000,), 3.0)], path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 3.0).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    load_plain(path, "buffers")  # torch itself does not look
    with pytest.raises(ConfigurationError, match=r"it cannot be used: .*data/0"):
        check_content(path, "buffers")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_fingerprint_follows_from_the_values(tmp_path: Path, zipped: bool) -> None:
    found = []
    for value in (1.0, 2.0, 1.0):
        torch.save([torch.full((5,), value)], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        found.append(fingerprint(tmp_path / "a.pt"))
    assert found[1] != found[0]
    if zipped:  # the older format holds addresses of memory
        assert found[0] == found[2]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.pt", "is missing"), (tmp_path, "cannot be read .*directory")):
        with pytest.raises(ConfigurationError, match=f"buffers=.*: it {words}"):
            load_plain(path, "buffers")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"text\.pt: it cannot be used"):
        load_plain(tmp_path / "text.pt", "buffers")


@pytest.mark.parametrize("kept", [4, 100, 0.5, -1])
def test_a_fingerprint_of_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ConfigurationError, match=r"buffers=.*a\.pt: it cannot be used: .*Remedy: copy it again"):
        fingerprint(path, "buffers")


def test_whatever_happens_to_the_end_of_a_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """The end of a zip archive is where its checksums stand."""
    path, draw = tmp_path / "a.pt", random.Random(0)
    torch.save(CONTENT, path)
    content, refused = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        begin = archive.start_dir
    for _ in range(300):
        changed = bytearray(content)
        changed[draw.randrange(begin, len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        for look in (fingerprint, check_content):
            try:
                look(path, "buffers")
            except ConfigurationError:
                refused += 1
    assert refused > 100


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As a run writes it."""
    states = RunStates(tmp_path / "resume", {"expert": 0})
    weights = torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    states.save_checkpoint({"state_dict": {"weights": weights}}, states.last)
    return states.last


def test_a_checkpoint_is_read_as_it_was_written_or_not_at_all(checkpoint: Path) -> None:
    """The padding between the records of an archive, and the times in it, have no checksum and matter to nobody."""
    content, draw = checkpoint.read_bytes(), random.Random(0)
    whole, rejected = load_checked(checkpoint), 0
    for _ in range(300):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(changed)
        try:
            read = load_checked(checkpoint)
        except Damaged:
            rejected += 1
        else:
            assert torch.equal(read["state_dict"]["weights"], whole["state_dict"]["weights"])
            assert read["ast_lightning"] == whole["ast_lightning"]
    assert rejected > 250
    for kept in (0, 20, 41, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:kept])
        with pytest.raises(Damaged):
            load_checked(checkpoint)
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError):
        load_checked(checkpoint)


def test_a_checkpoint_with_a_comment_is_read(checkpoint: Path) -> None:
    """Earlier versions kept a checksum in the comment of the archive."""
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-2] + (41).to_bytes(2, "little") + b"xxh3_128:" + b"0" * 32)
    assert load_checked(checkpoint)["ast_lightning"]["belongs_to"] == {"expert": 0}


def test_hostile_content_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(Hostile(tmp_path / "sentinel"), tmp_path / "last.ckpt")
    with pytest.raises(Damaged):
        load_checked(tmp_path / "last.ckpt")
    assert not (tmp_path / "sentinel").exists()


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "files"

    def fail() -> Any:
        assert not list(folder.glob("*.pt"))  # the first one is not seen yet
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_together(folder, {"a.pt": lambda: 1, "b.pt": fail})
    assert list(folder.iterdir()) == []
    (folder / "notes.txt").write_text("a user's own")
    with pytest.raises(KeyboardInterrupt):
        save_together(folder, {"a.pt": lambda: 1, "b.pt": fail})
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert save_together(folder, {"a.pt": lambda: 1, "b.pt": lambda: 2}) == [folder / "a.pt", folder / "b.pt"]
    assert [torch.load(folder / name, weights_only=True) for name in ("a.pt", "b.pt")] == [1, 2]
    assert sorted(path.name for path in folder.iterdir()) == ["a.pt", "b.pt", "notes.txt"]


def test_what_a_kill_left_is_deleted_by_the_next_call(tmp_path: Path) -> None:
    for name in (".a.pt.partial", ".other.pt.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.pt").write_bytes(b"a piece")
    save_together(tmp_path, {"a.pt": lambda: 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.pt.partial", "a.pt"]
