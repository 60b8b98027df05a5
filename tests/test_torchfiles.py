"""Files of torch.save: plain tensors are read, code is named and never run, damage is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ast_lightning.errors import ConfigurationError
from ast_lightning.torchfiles import check_content, fingerprint, load_plain


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
    with pytest.raises(ConfigurationError, match=r"a\.pt: it is damaged"):
        load_plain(path, "buffers")


def test_a_flipped_bit_is_found_where_the_format_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save([torch.full((1000,), 3.0)], path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 3.0).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    load_plain(path, "buffers")  # torch itself does not look
    with pytest.raises(ConfigurationError, match=r"it is damaged \(.*data/0\)"):
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
    for path, words in ((tmp_path / "none.pt", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigurationError, match=f"it cannot be read .*{words}"):
            load_plain(path, "buffers")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"text\.pt: it is damaged or"):
        load_plain(tmp_path / "text.pt", "buffers")
