"""Published buffers into a store and back, and every way in which they do not fit."""

from __future__ import annotations

import copy
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ConvNet, FunctionalNetwork
from ast_lightning.storage.torch_files import fingerprint
from ast_lightning.trajectories import TrajectoryStore, interchange
from ast_lightning.trajectories.interchange import (
    buffer_files,
    check_sources,
    export_buffers,
    import_buffers,
    scan_buffers,
)
from tests import PATIENCE

Trajectory = list[list[Any]]
Fill = Callable[[int], None]
EPOCHS = 4  # of the fixture ``store``
PARAMETERS = list(ConvNet(1, 3, (4, 4), width=2, depth=1).parameters())


def trajectory(seed: int, epochs: int = EPOCHS) -> Trajectory:
    """E + 1 lists of tensors in ``parameters()`` order, written by hand as the published codes do it."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(each.shape, generator=generator) for each in PARAMETERS] for _ in range(epochs + 1)]


def flat(snapshot: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().reshape(-1) for tensor in snapshot])


def bring_in(store: TrajectoryStore, folder: Path, count: int | None = None) -> None:
    import_buffers(store, scan_buffers(folder, store.layout, count)[0])


def refusal(store: TrajectoryStore, content: Any, folder: Path) -> ConfigurationError:
    """What is said of one file with this content, of which nothing is imported."""
    torch.save(content, folder / "replay_buffer_0.pt")
    with pytest.raises(ConfigurationError) as caught:
        bring_in(store, folder)
    assert "replay_buffer_0.pt" in str(caught.value)
    assert store.experts() == []
    assert not list(store.folder.glob("expert_*/epoch_*"))
    return caught.value


@pytest.mark.parametrize("per_file", [1, 2, 10])
def test_round_trip_is_exact(store: TrajectoryStore, fill: Fill, tmp_path: Path, per_file: int) -> None:
    for expert in range(12):
        fill(expert)
    files = export_buffers(store, tmp_path / "files", per_file)
    assert [path.name for path in files] == [f"replay_buffer_{number}.pt" for number in range(-(-12 // per_file))]
    assert buffer_files(tmp_path / "files") == files
    assert not list((tmp_path / "files").glob(".*"))
    again = TrajectoryStore.create(tmp_path / "again", {**store.metadata, "expert": {}})
    bring_in(again, tmp_path / "files")
    assert again.experts() == store.experts()
    for expert in range(12):
        assert torch.equal(again.read_window(expert, 0, EPOCHS), store.read_window(expert, 0, EPOCHS))


def test_an_export_is_what_the_published_codes_read(
    store: TrajectoryStore, fill: Fill, snapshot: Callable[[int, int], Tensor], tmp_path: Path
) -> None:
    fill(0)
    fill(3)
    (file,) = export_buffers(store, tmp_path / "files", per_file=10)
    content = torch.load(file, weights_only=True)
    assert [len(each) for each in content] == [EPOCHS + 1] * 2
    for epoch in range(EPOCHS + 1):
        tensors = content[1][epoch]
        assert [tensor.shape for tensor in tensors] == [each.shape for each in PARAMETERS]
        assert torch.equal(flat(tensors), snapshot(3, epoch))
    pointers = {tensor.data_ptr() for each in content for tensors in each for tensor in tensors}
    assert len(pointers) == 2 * (EPOCHS + 1) * len(PARAMETERS)


def test_files_are_taken_in_the_order_of_their_numbers(store: TrajectoryStore, tmp_path: Path) -> None:
    contents = {10: [trajectory(4)], 2: [trajectory(1), trajectory(2), trajectory(3)], 1: [trajectory(0)]}
    for number, content in contents.items():
        torch.save(content, tmp_path / f"replay_buffer_{number}.pt")
    sources, epochs = scan_buffers(tmp_path, store.layout)
    assert [(each.file.name, each.trajectory) for each in sources] == [
        ("replay_buffer_1.pt", 0),
        ("replay_buffer_2.pt", 0),
        ("replay_buffer_2.pt", 1),
        ("replay_buffer_2.pt", 2),
        ("replay_buffer_10.pt", 0),
    ]
    assert epochs == EPOCHS
    import_buffers(store, sources, [4, 1], lambda expert, source, theta: {"sum": float(theta.sum()), "is": expert})
    assert store.experts() == [1, 4]
    for expert in (1, 4):
        for epoch, tensors in enumerate(trajectory(expert)):
            assert torch.equal(store.read_snapshot(expert, epoch), flat(tensors))
    summary = store.summary(4)
    assert summary["source"] == {
        "file": "replay_buffer_10.pt",
        "trajectory": 0,
        "checksum": fingerprint(tmp_path / "replay_buffer_10.pt"),
        "dtype": "float32",
    }
    moved = [flat(now) - flat(before) for before, now in zip(trajectory(4), trajectory(4)[1:], strict=False)]
    assert [row["trajectory/movement"] for row in summary["history"]] == pytest.approx([float(d.norm()) for d in moved])
    assert summary["metrics"]["is"] == 4
    assert summary["metrics"]["sum"] == pytest.approx(float(flat(trajectory(4)[-1]).sum()))


@pytest.mark.parametrize("form", ["parameters", "half", "bfloat16", "legacy", "tuples", "shared"])
def test_every_published_form_is_read(store: TrajectoryStore, tmp_path: Path, form: str) -> None:
    content: Any = [trajectory(0)]
    if form == "parameters":
        content = [[[nn.Parameter(tensor) for tensor in tensors] for tensors in each] for each in content]
    elif form in ("half", "bfloat16"):
        dtype = torch.half if form == "half" else torch.bfloat16
        content = [[[tensor.to(dtype) for tensor in tensors] for tensors in each] for each in content]
    elif form == "tuples":
        content = tuple(tuple(map(tuple, each)) for each in content)
    elif form == "shared":  # views of one vector a snapshot
        sizes = [each.numel() for each in PARAMETERS]
        vectors = [flat(tensors).split(sizes) for tensors in content[0]]
        content = [[[p.view(each.shape) for p, each in zip(v, PARAMETERS, strict=True)] for v in vectors]]
    path = tmp_path / "replay_buffer_0.pt"
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    bring_in(store, tmp_path)
    for epoch, tensors in enumerate(content[0]):
        assert torch.equal(store.read_snapshot(0, epoch), flat(list(tensors)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
def test_only_a_snapshot_of_a_mapped_file_is_in_memory(tmp_path: Path) -> None:
    """The parameters that an import holds at once, beside the mapped file: two snapshots, never a trajectory."""
    factory = functools.partial(ConvNet, 3, 10, (32, 32), width=64)
    network = FunctionalNetwork(factory)
    epochs, size = 40, 4 * network.num_parameters
    described = {"target": "", "arguments": {}, "parameters": [[n, list(s)] for n, s in network.layout]}
    store = TrajectoryStore.create(tmp_path / "store", {"network": described, "epochs": epochs, "seed": 0, "data": {}})
    theta = torch.randn(network.num_parameters)
    pieces = [[(theta + epoch)[:] for epoch in range(epochs + 1)]]
    content = [[list(network.unflatten(each).values()) for each in pieces[0]]]
    torch.save(
        [[[t.clone() for t in tensors] for tensors in each] for each in content], tmp_path / "replay_buffer_0.pt"
    )
    del pieces, content
    sources, _ = scan_buffers(tmp_path, store.layout)
    peak = _peak_of_anonymous_memory(lambda: import_buffers(store, sources))
    assert peak < 0.3 * epochs * size
    assert torch.equal(store.read_snapshot(0, 7), theta + 7)


def _peak_of_anonymous_memory(work: Callable[[], None]) -> int:
    """Bytes by which this process's own pages grew at most, seen by a thread that keeps looking."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before, seen, done = anonymous(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            seen.append(anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return max(seen)


def test_complete_experts_stay_and_a_killed_import_goes_on(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save([trajectory(0), trajectory(1), trajectory(2)], tmp_path / "replay_buffer_0.pt")
    write, written = TrajectoryStore.write_snapshot, []

    def killed(self: TrajectoryStore, expert: int, epoch: int, tensors: Any) -> None:
        if (expert, epoch) == (1, 3):
            raise KeyboardInterrupt
        written.append((expert, epoch))
        write(self, expert, epoch, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(TrajectoryStore, "write_snapshot", killed)
        with pytest.raises(KeyboardInterrupt):
            bring_in(store, tmp_path)
    assert store.experts() == [0]
    times = {path: path.stat().st_mtime_ns for path in store.expert_folder(0).iterdir()}
    bring_in(store, tmp_path)
    assert store.experts() == [0, 1, 2]
    assert times == {path: path.stat().st_mtime_ns for path in store.expert_folder(0).iterdir()}
    for expert in range(3):
        assert torch.equal(store.read_window(expert, 0, EPOCHS)[3], flat(trajectory(expert)[3]))


def test_other_files_in_the_place_of_imported_ones_are_named(store: TrajectoryStore, tmp_path: Path) -> None:
    torch.save([trajectory(0)], tmp_path / "replay_buffer_5.pt")
    bring_in(store, tmp_path)
    torch.save([trajectory(1)], tmp_path / "replay_buffer_4.pt")
    with pytest.raises(
        ConfigurationError, match=r"expert 0 was imported from replay_buffer_5\.pt, trajectory 0"
    ) as caught:
        bring_in(store, tmp_path)
    assert "replay_buffer_4.pt, trajectory 0" in caught.value.problem
    (tmp_path / "replay_buffer_4.pt").unlink()
    torch.save([trajectory(2)], tmp_path / "replay_buffer_5.pt")  # of the same size and name
    with pytest.raises(ConfigurationError, match="another path or checksum"):
        bring_in(store, tmp_path)
    assert store.experts() == [0]


def test_a_truncated_file_in_the_place_of_an_imported_one_is_named(store: TrajectoryStore, tmp_path: Path) -> None:
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([trajectory(0)], path)
    sources, _ = scan_buffers(tmp_path, store.layout)
    import_buffers(store, sources)
    os.truncate(path, path.stat().st_size // 2)
    for again in (lambda: check_sources(store, tmp_path, [0]), lambda: import_buffers(store, sources)):
        with pytest.raises(ConfigurationError, match=r"buffers=.*replay_buffer_0\.pt: it cannot be used"):
            again()
    assert store.experts() == [0]


def test_too_few_trajectories(store: TrajectoryStore, tmp_path: Path) -> None:
    torch.save([trajectory(0), trajectory(1)], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ConfigurationError, match=r"num_experts=3: .*hold only 2 trajectories.*num_experts=2"):
        bring_in(store, tmp_path, 3)
    bring_in(store, tmp_path, 1)
    assert store.experts() == [0]


def test_a_folder_without_files_is_named_and_the_right_one_where_it_is_below(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"buffers=.*there is no such folder"):
        buffer_files(tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"it has no replay_buffer_\*\.pt"):
        buffer_files(tmp_path)
    below = tmp_path / "CIFAR10_NO_ZCA" / "ConvNet"
    below.mkdir(parents=True)
    (below / "replay_buffer_0.pt").touch()
    with pytest.raises(ConfigurationError, match=f"set buffers={below}"):
        buffer_files(tmp_path)


def test_a_pickled_object_is_refused_before_anything_is_imported(store: TrajectoryStore, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sentinel"),)

    content = trajectory(0)
    content[EPOCHS][1] = Hostile()
    torch.save([trajectory(1)], tmp_path / "replay_buffer_00.pt")
    error = refusal(store, [trajectory(1), content], tmp_path)
    assert "posix.mkdir, which was not run" in error.problem
    assert not (tmp_path / "sentinel").exists()


def test_a_tensor_of_another_shape_is_named(store: TrajectoryStore, tmp_path: Path) -> None:
    content = [trajectory(0), trajectory(1)]
    content[1][3][2] = torch.zeros(7)
    error = refusal(store, content, tmp_path)
    assert error.problem.startswith("replay_buffer_0.pt, trajectory 1: epoch 3, tensor 2 is (7,), and ")
    assert "features.1.weight of the network is (2,)" in error.problem
    assert "network.width" in error.remedy


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t[2].pop(), "epoch 2 has 5 tensors, and the network has 6"),
        (lambda t: t[2].append(torch.zeros(1)), "epoch 2 has 7 tensors, and the network has 6"),
        (lambda t: t[1].__setitem__(0, t[1][0].long()), "epoch 1, tensor 0 is of type torch.int64"),
        (lambda t: t[1].__setitem__(3, "text"), "epoch 1 is not a list of tensors"),
        (lambda t: t.__setitem__(1, {"a": torch.zeros(1)}), "epoch 1 is not a list of tensors (a dict)"),
        (lambda t: t.clear(), "it is not a list of two or more epochs"),
        (lambda t: t[4][0].view(-1).__setitem__(0, float("nan")), "epoch 4, tensor 0 (features.0.weight) has values"),
        (lambda t: t[0][5].__setitem__(0, float("inf")), "epoch 0, tensor 5 (classifier.bias) has values"),
        (lambda t: [each.__setitem__(slice(None), t[-1]) for each in t], "the same at every epoch"),
        (lambda t: [each.__setitem__(slice(None), copy.deepcopy(t[-1])) for each in t], "the same at every epoch"),
    ],
)
def test_what_is_no_trajectory_is_named(
    store: TrajectoryStore, tmp_path: Path, spoil: Callable[[Trajectory], Any], words: str
) -> None:
    content = trajectory(0)
    spoil(content)
    error = refusal(store, [content], tmp_path)
    assert words in error.problem
    assert "trajectory 0" in error.problem
    assert error.remedy


@pytest.mark.parametrize("content", [{}, [], torch.zeros(3), {"state": [torch.zeros(1)]}])
def test_files_of_something_else_are_named(store: TrajectoryStore, tmp_path: Path, content: Any) -> None:
    assert "not a list of trajectories" in refusal(store, content, tmp_path).problem


def test_a_file_of_several_trajectories_is_checked_once(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save([trajectory(seed) for seed in range(3)], tmp_path / "replay_buffer_0.pt")
    sources, checked = scan_buffers(tmp_path, store.layout)[0], []
    monkeypatch.setattr(interchange, "check_content", lambda file, option: checked.append(file.name))
    import_buffers(store, sources, iter(range(3)))
    assert (store.experts(), checked) == ([0, 1, 2], ["replay_buffer_0.pt"])


def test_trajectories_of_several_lengths_are_named(store: TrajectoryStore, tmp_path: Path) -> None:
    problem = refusal(store, [trajectory(0), trajectory(1, EPOCHS - 1)], tmp_path).problem
    assert "trajectory 1: it has 3 epochs, and those before it have 4" in problem


def test_a_flipped_bit_is_named(store: TrajectoryStore, tmp_path: Path) -> None:
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([trajectory(0)], path)
    content = bytearray(path.read_bytes())
    content[content.index(trajectory(0)[2][0].numpy().tobytes()) + 1] ^= 8
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"replay_buffer_0\.pt: it cannot be used"):
        bring_in(store, tmp_path)
    assert store.experts() == []


def test_export_refuses_what_would_mix(store: TrajectoryStore, fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no complete expert"):
        export_buffers(store, tmp_path / "files")
    fill(0)
    with pytest.raises(ConfigurationError, match="per_file=0"):
        export_buffers(store, tmp_path / "files", 0)
    export_buffers(store, tmp_path / "files")
    with pytest.raises(ConfigurationError, match=r"holds replay_buffer_\*\.pt already"):
        export_buffers(store, tmp_path / "files")


@pytest.mark.parametrize("exists", [False, True])
def test_an_export_that_fails_leaves_nothing_and_can_be_said_again(
    store: TrajectoryStore, fill: Fill, tmp_path: Path, exists: bool
) -> None:
    for expert in range(3):
        fill(expert)
    out, broken = tmp_path / "files", store.snapshot_path(1, 2)
    if exists:
        out.mkdir()
        (out / "notes.txt").write_text("a user's own")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigurationError, match="epoch_0002"):
        export_buffers(store, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"] * exists
    broken.write_bytes(whole)
    files = export_buffers(store, out)
    assert len(files) == 3
    assert len(list(out.iterdir())) == 3 + exists


KILLED = """
import os, signal, sys
from pathlib import Path
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.interchange import export_buffers
read = TrajectoryStore.read_snapshot
def killed(self, expert, epoch):
    if (expert, epoch) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, expert, epoch)
TrajectoryStore.read_snapshot = killed
export_buffers(TrajectoryStore.open(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_an_export_that_was_killed_can_be_said_again(store: TrajectoryStore, fill: Fill, tmp_path: Path) -> None:
    fill(0)
    fill(1)
    out = tmp_path / "files"
    result = subprocess.run([sys.executable, "-c", KILLED, str(store.folder), str(out)], timeout=PATIENCE, check=False)
    assert result.returncode == -signal.SIGKILL
    assert not list(out.glob("replay_buffer_*.pt"))
    export_buffers(store, out)
    assert sorted(path.name for path in out.iterdir()) == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
