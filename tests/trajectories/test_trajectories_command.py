"""``python -m ast_lightning.trajectories``: what it prints, what it returns, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ast_lightning.data import fit_preprocessing, save_preprocessing
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import FunctionalNetwork
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs.checkpoints import RunStates
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.__main__ import main
from tests import PATIENCE

Fill = Callable[[int], None]
Run = Callable[..., tuple[int, str, str]]
Report = dict[str, dict[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Status, output and errors of a command line, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "400")

    def call(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def family(
    store: TrajectoryStore, fill: Fill, metadata: dict[str, Any], snapshot: Any, network: FunctionalNetwork
) -> Path:
    """Two stores: one with two complete experts and one in the making, one with nothing yet but its record."""
    fill(0)
    fill(3)
    store.finish(3, {"metrics": {"test/accuracy": 0.875}})
    for epoch in range(2):
        store.write_snapshot(4, epoch, network.unflatten(snapshot(4, epoch)))
    other = {**metadata, "seed": 7, "expert": {"every_n_epochs": 2, "snapshot_dtype": "float16"}}
    TrajectoryStore.create(store.folder.parent / "thin", other)
    return store.folder.parent


def test_ls_of_a_family(run: Run, family: Path, store: TrajectoryStore) -> None:
    status, text, _ = run("ls", family)
    assert status == 0
    for words in (["store", "digits", "0", "4", "5", "2 + 1 incomplete"], ["thin", "digits", "7", "4", "3", "0"]):
        assert any(words == row(line)[: len(words)] for line in text.splitlines()), text
    _, text, _ = run("ls", family, "--json")
    first, second = json.loads(text)
    size = sum(path.stat().st_size for path in store.folder.rglob("epoch_*"))
    assert first == {
        "folder": str(store.folder), "network": "ConvNet", "data": "digits", "seed": 0, "epochs": 4, "stored": 5,
        "complete": 2, "incomplete": 1, "bytes": size, "problem": None,
    }  # fmt: skip
    assert (second["stored"], second["bytes"]) == (3, 0)


def test_stores_behind_links_are_found_once(run: Run, family: Path, store: TrajectoryStore, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    store.folder.rename(disk / "far")  # as on a second disk
    here = tmp_path / "experts"
    (here / "set").mkdir(parents=True)
    (here / "a").symlink_to(disk / "far")
    (here / "b").symlink_to(disk)  # the same store by another way
    (family / "thin").rename(here / "set" / "thin")
    (here / "set" / "again").symlink_to("thin")
    (here / "set" / "round").symlink_to(here)
    (here / "nowhere").symlink_to(tmp_path / "none")
    _, text, _ = run("ls", here, "--json")
    assert [each["folder"] for each in json.loads(text)] == [str(here / "a"), str(here / "set" / "thin")]
    (disk / "far" / "expert_0000" / "epoch_0001.safetensors").unlink()
    status, text, _ = run("verify", here)
    assert status == 1
    assert f"{here / 'a' / 'expert_0000' / 'epoch_0001.safetensors'}: is missing" in text


def row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_ls_of_a_store(run: Run, family: Path, store: TrajectoryStore) -> None:
    store.snapshot_path(0, 2).unlink()
    (store.expert_folder(3) / "epoch_0001 copy.safetensors").touch()
    status, text, _ = run("ls", store.folder)
    assert status == 0
    rows = [row(line) for line in text.splitlines() if "│" in line]
    assert [each[0] for each in rows] == ["0", "3", "4"]
    assert rows[0][-1] == "snapshots [2] are missing"
    assert (rows[1][1], rows[1][2], rows[1][4], rows[1][5]) == ("5", "4", "87.5", "complete")
    assert (rows[2][1], rows[2][2], rows[2][5]) == ("2", "1", "incomplete")
    _, text, _ = run("ls", store.folder, "--json")
    assert [(each["expert"], each["complete"], each["epochs"]) for each in json.loads(text)] == [
        (0, True, [0, 1, 3, 4]),
        (3, True, [0, 1, 2, 3, 4]),
        (4, False, [0, 1]),
    ]


def test_info(run: Run, family: Path, store: TrajectoryStore) -> None:
    status, text, _ = run("info", store.folder)
    assert status == 0
    shown = yaml.safe_load(text)
    for name in ("id", "format", "seed", "expert", "versions", "data"):
        assert shown[name] == store.metadata[name]
    assert (shown["complete"], shown["stored_epochs"]) == (2, [0, 1, 2, 3, 4])
    assert (shown["network"]["arguments"]["width"], shown["parameters"]) == (2, store.format.num_parameters)
    _, text, _ = run("info", store.folder, "--json")
    described = json.loads(text)
    assert described.items() >= store.metadata.items()
    _, text, _ = run("info", family, "--json")
    assert [each["seed"] for each in json.loads(text)] == [0, 7]


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    run: Run, metadata: dict[str, Any], tmp_path: Path
) -> None:
    TrajectoryStore.create(tmp_path / "evil", {**metadata, "data": {"name": "\x1b[2Jgone\x07", "of": "${b"}})
    for words in (["ls", tmp_path], ["info", tmp_path / "evil"]):
        status, text, _ = run(*words)
        assert status == 0
        assert "[2Jgone" in text
        assert not {"\x1b", "\x07"} & {*text}


def test_verify_says_that_all_is_well(run: Run, store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    fill(1)
    status, text, _ = run("verify", store.folder.parent)
    assert (status, text.endswith("of snapshots: no problems\n")) == (0, True)
    assert text.startswith("1 store, 2 complete experts, ")
    status, text, _ = run("verify", store.folder, "--json")
    report = json.loads(text)
    assert (status, report["findings"], len(report["stores"])) == (0, [], 1)


def test_verify_names_everything_that_is_wrong(run: Run, family: Path, store: TrajectoryStore) -> None:
    broken = store.snapshot_path(3, 1)
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    store.snapshot_path(3, 4).unlink()
    stray = store.snapshot_path(0, 9)
    stray.write_bytes(b"")
    piece = store.expert_folder(4) / ".epoch_0002.safetensors.xyz.partial"
    piece.write_bytes(b"")
    (store.expert_folder(0) / "notes.txt").write_text("a user's own")
    status, text, _ = run("verify", family, "--json")
    assert status == 1
    found = {each["file"]: each for each in json.loads(text)["findings"]}
    incomplete = store.expert_folder(4) / "expert.json"
    assert {Path(name) for name in found} == {broken, store.snapshot_path(3, 4), stray, piece, incomplete}
    assert "does not match its checksum" in found[str(broken)]["problem"]
    assert "is missing" in found[str(store.snapshot_path(3, 4))]["problem"]
    assert "2 of 5 snapshots" in found[str(incomplete)]["problem"]
    assert "run train_experts.py with the same settings" in found[str(incomplete)]["remedy"]
    assert found[str(piece)]["remedy"] == found[str(stray)]["remedy"] == "delete it"

    status, text, _ = run("verify", family)
    lines = text.splitlines()
    assert (status, len(lines)) == (1, 6)
    assert lines[-1].startswith("2 stores, 2 complete experts, ")
    assert lines[-1].endswith("5 problems")
    assert all(". Remedy: " in line for line in lines[:-1])
    assert any(line.startswith(f"{broken}: cannot be used: it does not match") for line in lines)


@pytest.fixture
def report(run: Run, store: TrajectoryStore) -> Callable[[], tuple[int, Report, dict[str, str]]]:
    """Status, findings by file, and notes by file of ``verify`` of the store."""

    def call() -> tuple[int, Report, dict[str, str]]:
        status, text, _ = run("verify", store.folder, "--json")
        told = json.loads(text)
        notes = {each["file"]: each["problem"] for each in told["notes"]}
        return status, {each["file"]: each for each in told["findings"]}, notes

    return call


def test_what_a_running_process_writes_is_no_problem(
    run: Run, report: Any, store: TrajectoryStore, fill: Fill, network: FunctionalNetwork
) -> None:
    fill(0)
    store.write_snapshot(1, 0, network.unflatten(torch.ones(network.num_parameters)))
    pieces = [store.expert_folder(1) / ".epoch_0001.safetensors.xyz.partial"]
    pieces += [store.expert_folder(1) / "resume" / ".last.ckpt.xyz.partial"]
    pieces += [store.expert_folder(2) / ".epoch_0000.safetensors.xyz.partial"]  # of an expert without a snapshot
    pieces += [store.folder / ".preprocessing.safetensors.xyz.partial"]
    for piece in pieces:
        piece.parent.mkdir(exist_ok=True)
        piece.write_bytes(b"")
    folders = [store.expert_folder(1), store.expert_folder(2)]
    with FolderLock(folders[0]) as first, FolderLock(folders[1]) as second, FolderLock(store.folder / "store") as made:
        assert first.take()
        assert second.take()
        assert made.take()
        before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
        holder = f"process {os.getpid()} on "
        status, findings, notes = report()
        assert (status, findings, set(notes)) == (0, {}, {str(folder) for folder in folders})
        assert notes[str(folders[0])].startswith(f"expert 1 is being trained by {holder}")
        status, text, _ = run("verify", store.folder)
        assert (status, text.count(holder)) == (0, 2)
        assert text.endswith("no problems\n")
        assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before
    status, findings, notes = report()
    assert (status, notes) == (1, {})
    assert set(findings) == {str(path) for path in (*pieces, store.expert_folder(1) / "expert.json")}
    assert all(findings[str(piece)]["remedy"] == "delete it" for piece in pieces)


def test_a_look_at_a_store_makes_no_locks(report: Any, family: Path, store: TrajectoryStore) -> None:
    (store.expert_folder(4) / ".epoch_0002.safetensors.xyz.partial").write_bytes(b"")
    (store.folder / ".store.json.xyz.partial").write_bytes(b"")
    before = sorted(family.rglob("*"))
    assert report()[0] == 1
    assert sorted(family.rglob("*")) == before


@pytest.fixture
def stopped(store: TrajectoryStore, network: FunctionalNetwork, snapshot: Callable[[int, int], Tensor]) -> RunStates:
    """The states of expert 2, which was stopped after epoch 3."""
    states = RunStates(store.expert_folder(2) / "resume", {"expert": 2})
    for epoch in range(4):
        store.write_snapshot(2, epoch, network.unflatten(snapshot(2, epoch)))
        states.save_checkpoint({"epoch": epoch, "theta": snapshot(2, epoch)}, states.last)
    return states


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_sound_states_are_gone_on_from(report: Any, store: TrajectoryStore, stopped: RunStates) -> None:
    (stopped.folder / "damaged.ckpt").write_bytes(b"read by nothing")
    (stopped.folder / "machine.json").write_text("{}")
    status, findings, _ = report()
    (finding,) = findings.values()
    assert (status, finding["file"]) == (1, str(store.expert_folder(2) / "expert.json"))
    assert "resumes this expert" in finding["remedy"]


@pytest.mark.parametrize(("bad", "good"), [("last", "previous"), ("previous", "last")])
def test_a_damaged_state_beside_a_sound_one(
    report: Any, store: TrajectoryStore, stopped: RunStates, bad: str, good: str
) -> None:
    broken = stopped.folder / f"{bad}.ckpt"
    spoil(broken)
    status, findings, _ = report()
    assert (status, set(findings)) == (1, {str(broken), str(store.expert_folder(2) / "expert.json")})
    assert "archive/data/0 in it does not match its checksum" in findings[str(broken)]["problem"]
    assert stopped.find(expected=True) == (stopped.previous if bad == "last" else stopped.last)


@pytest.mark.parametrize("how", ["spoilt", "cut short", "gone"])
def test_no_state_that_can_be_used(report: Any, store: TrajectoryStore, stopped: RunStates, how: str) -> None:
    states = [stopped.last, stopped.previous]
    for path in states:
        if how == "spoilt":
            spoil(path)
        elif how == "cut short":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
    status, findings, _ = report()
    named = [] if how == "gone" else states
    record = store.expert_folder(2) / "expert.json"
    assert (status, set(findings)) == (1, {str(path) for path in (*named, record)})
    assert findings[str(record)]["problem"].endswith("4 of 5 snapshots")
    assert all("prints why it cannot" in each["remedy"] for each in findings.values())
    with pytest.raises(ConfigurationError, match="fresh=true"):
        stopped.find(expected=True)


def test_states_without_a_snapshot_are_read(report: Any, store: TrajectoryStore, stopped: RunStates) -> None:
    for path in store.expert_folder(2).glob("epoch_*"):
        path.unlink()
    spoil(stopped.last)
    _, findings, _ = report()
    assert set(findings) == {str(stopped.last), str(store.expert_folder(2) / "expert.json")}


def test_a_state_that_this_user_may_not_read(report: Any, stopped: RunStates, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == stopped.last:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    _, findings, _ = report()
    assert findings[str(stopped.last)]["problem"] == "it cannot be read (Permission denied)"
    assert "do not delete it" in findings[str(stopped.last)]["remedy"]


@pytest.mark.parametrize("damage", ["gone", "cut short", "newer"])
def test_a_store_whose_record_is_of_no_use(run: Run, store: TrajectoryStore, fill: Fill, damage: str) -> None:
    fill(0)
    path = store.folder / "store.json"
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        path.write_text(path.read_text()[:-30])
    else:
        path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    status, text, _ = run("verify", store.folder.parent, "--json")
    (finding,) = json.loads(text)["findings"]
    assert (status, finding["file"]) == (1, str(path))
    status, text, _ = run("ls", store.folder.parent)
    assert status == 0
    assert {"gone": "no store.json", "cut short": "cannot be used", "newer": "format is 3"}[damage] in text
    status, _, errors = run("info", store.folder)
    assert (status, errors.startswith(f"error: experts_dir={store.folder}: "), "Remedy: " in errors) == (2, True, True)
    run("ls", store.folder)  # its experts can still be counted


def test_verify_covers_the_preprocessing(run: Run, metadata: dict[str, Any], tmp_path: Path, images: Any) -> None:
    fitted, other = (fit_preprocessing("standardize", each) for each in (images, images // 2))
    store = TrajectoryStore.create(tmp_path / "s", {**metadata, "preprocessing_fingerprint": fitted.fingerprint()})
    path = store.folder / "preprocessing.safetensors"

    def problem() -> str:
        status, text, _ = run("verify", store.folder, "--json")
        findings = json.loads(text)["findings"]
        assert status == len(findings) <= 1
        assert all(each["file"] == str(path) and "delete both it and store.json" in each["remedy"] for each in findings)
        return findings[0]["problem"] if findings else ""

    assert problem().endswith("is missing")
    save_preprocessing(path, fitted)
    assert problem() == ""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    assert "does not match its checksum" in problem()
    path.write_bytes(content[:-1])
    assert "truncated" in problem()
    save_preprocessing(path, other)
    assert "is not the one that store.json names" in problem()


@pytest.fixture
def images() -> Any:
    import torch

    return torch.randint(256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("command", ["verify", "ls", "info"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_stores(run: Run, tmp_path: Path, command: str, exists: bool) -> None:
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    status, text, errors = run(command, folder)
    assert (status, text) == (2, "")
    assert str(folder) in errors
    assert "runs/experts" in errors


def test_help_and_listings_start_without_torch(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    code = f"""
import sys
from ast_lightning.trajectories.__main__ import main
for words in (["ls", {str(store.folder)!r}], ["info", {str(store.folder)!r}], ["--help"]):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0
assert "torch" not in sys.modules, "torch"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 0, result.stderr
    for word in ("verify", "ls", "info", "status 1 if any"):
        assert word in " ".join(result.stdout.split())


def test_export(run: Run, store: TrajectoryStore, fill: Fill, tmp_path: Path) -> None:
    fill(0)
    fill(1)
    out = tmp_path / "out"
    assert run("export", store.folder, out, "--per-file", "2")[:2] == (0, f"1 file in {out}\n")
    (file,) = out.iterdir()
    content = torch.load(file, weights_only=True)
    assert len(content) == 2
    assert torch.equal(torch.cat([each.flatten() for each in content[1][3]]), store.read_snapshot(1, 3))
    status, _, problem = run("export", store.folder, out)
    assert status == 2
    assert "holds replay_buffer_*.pt already" in problem


def test_what_the_disk_refuses_is_said_in_a_line(
    store: TrajectoryStore, fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(0)
    (tmp_path / "file").write_text("no folder")
    assert main(["export", str(store.folder), str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"


@pytest.mark.slow
def test_it_is_a_module_that_runs(store: TrajectoryStore, fill: Fill) -> None:
    fill(0)
    words = [sys.executable, "-m", "ast_lightning.trajectories", "verify", str(store.folder)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    store.snapshot_path(0, 0).unlink()
    result = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 1
    assert "epoch_0000.safetensors" in result.stdout
