"""Reading random windows of stored trajectories: ``python -m benchmarks.trajectories``.

The published codes store whole trajectories, one per file (AST) or ten (MTT), and read them with ``torch.load``. Here
the same values are stored in the trajectory store and in both kinds of files. The same random windows are read from
each, one window at a time, with the files in the page cache. ``runs code`` is ``weights_only=False``, as in the
published code: a file can then execute arbitrary code. The store compares every checksum. The memory added is the peak
of anonymous memory after reading a window, without memory-mapped pages of files.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ast_lightning.distillation.trajectory_matching import choose_window
from ast_lightning.networks import ConvNet, describe_network
from ast_lightning.randomness import keyed_generator
from ast_lightning.storage.files import format_bytes
from ast_lightning.trajectories import TrajectoryStore
from benchmarks.arguments import Size, run
from benchmarks.measure import Step, Timing, Variant, interleaved

NETWORK = functools.partial(ConvNet, 3, 10, (32, 32), width=128, depth=3)
EXPERT_EPOCHS = 2
WINDOWS = 1000
Read = Callable[[int, int], Tensor]
"""(expert, start epoch) → window ``[M + 1, P]``."""


@dataclass(frozen=True)
class Reader:
    """A way to read windows.

    Attributes:
        folder: folder of the stored trajectories.
        experts: number of experts.
        epochs: E.
        together: trajectories per file; 0 for the store.
        mmap: option of ``torch.load``.
        weights_only: option of ``torch.load``.
        windows: number of windows in one run.
    """

    folder: Path
    experts: int
    epochs: int
    together: int = 0
    mmap: bool = False
    weights_only: bool = True
    windows: int = 100

    def __call__(self) -> Step:
        """Prepare the measured step in this process; every run reads the next windows of the stream."""
        read, numbers = self.read(), itertools.count()

        def step() -> None:
            for _ in range(self.windows):
                read(*self.choose(next(numbers)))

        return step

    def choose(self, number: int) -> tuple[int, int]:
        """Expert and start epoch of a window."""
        return choose_window(number, range(self.experts), self.epochs - EXPERT_EPOCHS + 1, 0)

    def read(self) -> Read:
        """The function that reads one window."""
        if not self.together:
            store = TrajectoryStore.open(self.folder / "store")
            return lambda expert, start: store.read_window(expert, start, EXPERT_EPOCHS)

        def read(expert: int, start: int) -> Tensor:
            file, position = divmod(expert, self.together)
            path = _file(self.folder, self.together, file)
            # weights_only=False is safe here: this benchmark wrote the files itself
            trajectory = torch.load(path, mmap=self.mmap, weights_only=self.weights_only)[position]
            snapshots = trajectory[start : start + EXPERT_EPOCHS + 1]
            return torch.stack([torch.cat([each.reshape(-1) for each in snapshot]) for snapshot in snapshots])

        return read

    def growth(self, windows: int) -> int:
        """Bytes of anonymous memory that ``windows`` windows add to a process after its imports."""
        before = peak = _anonymous()
        read = self.read()
        for number in range(windows):
            window = read(*self.choose(number))
            peak = max(peak, _anonymous())
            del window
        return peak - before


def build(folder: Path, experts: int, epochs: int) -> int:
    """Store random trajectories in all three ways.

    Returns:
        Size of the values in bytes.
    """
    metadata = {"network": describe_network(NETWORK), "data": {}, "expert": {}, "epochs": epochs, "seed": 0}
    store = TrajectoryStore.create(folder / "store", metadata)
    size = store.format.num_parameters
    several: list[list[list[Tensor]]] = []
    for expert in range(experts):
        generator = keyed_generator(0, "trajectory", expert)
        trajectory = []
        for epoch in range(epochs + 1):
            pieces = torch.randn(size, generator=generator).split([_size(shape) for _, shape in store.layout])
            tensors = [piece.view(shape).clone() for (_, shape), piece in zip(store.layout, pieces, strict=True)]
            store.write_snapshot(expert, epoch, dict(zip((name for name, _ in store.layout), tensors, strict=True)))
            trajectory.append(tensors)
        store.finish(expert, {})
        torch.save([trajectory], _file(folder, 1, expert))
        several.append(trajectory)
        if len(several) == 10:
            torch.save(several, _file(folder, 10, expert // 10))
            several = []
    return 4 * size * experts * (epochs + 1)


def report(size: Size) -> list[str]:
    """All sections."""
    experts, epochs = (10, 10) if size.small else (20, 50)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = build(folder, experts, epochs)
        make = functools.partial(Reader, folder, experts, epochs)
        readers = {"the store": make(windows=WINDOWS // size.rounds)}
        for together, windows in ((1, 20), (10, 3)):
            files = f"torch.load, {together} in a file"
            for mmap, trusting in itertools.product((False, True), (False, True)):
                words = ("mmap, " if mmap else "") + ("runs code" if trusting else "weights only")
                readers[f"{files}, {words}"] = make(together, mmap, not trusting, windows)
        timings = interleaved([Variant(each, reader) for each, reader in readers.items()], size.rounds)
        growths = {each: _growth(reader, WINDOWS if not reader.together else 10) for each, reader in readers.items()}
    title = f"{experts} experts of {epochs + 1} snapshots, {format_bytes(stored)}, windows of {EXPERT_EPOCHS + 1}"
    return [f"### Trajectories: {title}", _table(timings, readers, growths)]


def _table(timings: list[Timing], readers: dict[str, Reader], growths: dict[str, int]) -> str:
    lines = ["| way | ms a window | times as long as the store | memory added, MB |", "|---|---|---|---|"]
    per_window = {each.name: 1e3 * each.median / readers[each.name].windows for each in timings}
    first = next(iter(per_window.values()))
    for name, value in per_window.items():
        lines.append(f"| {name} | {value:.3g} | {value / first:.1f} | {growths[name] / 1e6:.0f} |")
    return "\n".join(lines)


def _growth(reader: Reader, windows: int) -> int:
    """Measure :meth:`Reader.growth` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(reader.growth, windows).result()


def _anonymous() -> int:
    fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines())
    return next(int(words[1]) * 1024 for words in fields if words[0] == "Anonymous:")


def _file(folder: Path, together: int, number: int) -> Path:
    return folder / f"trajectories_{together}_{number}.pt"


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


if __name__ == "__main__":
    run(report, __doc__, on_devices=False)
