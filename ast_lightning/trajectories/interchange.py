"""Import and export of trajectories in the published format, ``replay_buffer_<n>.pt``.

The published codes of MTT, FTD, DATM and AST save a list of trajectories to each file. A trajectory is a list of E + 1
lists of tensors in the order of ``module.parameters()`` (method section 5). The files do not describe the network and
the data: the user specifies both at import, and the shape of every tensor is compared with that network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.networks import ParameterLayout
from ast_lightning.storage.files import clear_leftovers
from ast_lightning.storage.torch_files import check_content, fingerprint, load_plain, save_together
from ast_lightning.trajectories.store import TrajectoryStore

OPTION = "buffers"
PATTERN = "replay_buffer_*.pt"
_SAME_NETWORK = (
    "set data, data.image_size, network.width, network.depth, network.normalization (layer_chw for the LayerNorm of "
    "the published codes), network.pooling and network.first_padding as they were trained with"
)
_NOT_PUBLISHED = "name files that the published codes wrote"

Evaluate = Callable[[int, "Source", Tensor], Mapping[str, float]]
"""(index of the expert, its source, its final parameters ``[P]``) → metrics for the expert's summary."""


@dataclass(frozen=True)
class Source:
    """The file that an expert is imported from.

    Attributes:
        file: a ``replay_buffer_<n>.pt``.
        trajectory: its position in the file.
    """

    file: Path
    trajectory: int

    def __str__(self) -> str:
        return f"{self.file.name}, trajectory {self.trajectory}"

    def record(self) -> dict[str, Any]:
        """The source as recorded in the expert's summary."""
        return {"file": self.file.name, "trajectory": self.trajectory, "checksum": fingerprint(self.file, OPTION)}


def buffer_files(folder: Path | str) -> list[Path]:
    """The files of a folder in natural order, ``replay_buffer_2`` before ``replay_buffer_10``.

    Raises:
        ConfigurationError: there are none.
    """
    folder = Path(folder)
    files = sorted(folder.glob(PATTERN), key=lambda path: (len(path.name), path.name))
    if not files:
        deeper = next(folder.rglob(PATTERN), None)
        what = f"it has no {PATTERN}" if folder.is_dir() else "there is no such folder"
        remedy = f"set {OPTION}={deeper.parent}" if deeper else f"name the folder that holds {PATTERN}"
        raise ConfigurationError(OPTION, folder, what, remedy)
    return files


def scan_buffers(folder: Path | str, layout: ParameterLayout, count: int | None = None) -> tuple[list[Source], int]:
    """Check structure and shapes of all files before anything is imported.

    Args:
        folder: contains ``replay_buffer_<n>.pt`` files.
        layout: names and shapes of the network's parameters.
        count: number of trajectories to use, from the first one in natural order; None uses all.

    Returns:
        The sources, indexed by the expert that each becomes, and E, the number of epochs of all trajectories.

    Raises:
        ConfigurationError: a file cannot be read or contains pickled code; the shape of a tensor differs from that of
            the network; trajectories differ in length, or are constant; there are fewer than ``count``.
    """
    sources: list[Source] = []
    epochs = 0
    for file in buffer_files(folder):
        for position, trajectory in enumerate(_trajectories(file)):
            source = Source(file, position)
            _check(source, trajectory, layout)
            length = len(trajectory) - 1
            if sources and length != epochs:
                problem = f"it has {length} epochs, and those before it have {epochs}"
                raise _rejected(source, problem, "keep trajectories of one length in the folder")
            epochs = length
            sources.append(source)
            if len(sources) == count:
                return sources, epochs
    if count is not None:
        problem = f"the files in {folder} hold only {len(sources)} trajectories"
        raise ConfigurationError("num_experts", count, problem, f"set num_experts={len(sources)}")
    return sources, epochs


def import_buffers(
    store: TrajectoryStore,
    sources: Sequence[Source],
    experts: Iterable[int] | None = None,
    evaluate: Evaluate = lambda expert, source, theta: {},
) -> None:
    """Copy trajectories to the store, one snapshot at a time. Experts that are already complete are not changed.

    Values are converted to float32; for half precision, this conversion is exact.

    Args:
        store: a store for the network and the number of epochs that :func:`scan_buffers` was called with.
        sources: see :func:`scan_buffers`.
        experts: indices of the experts to import; None for all.
        evaluate: evaluates the final parameters; the result is stored in the expert's summary.

    Raises:
        ConfigurationError: a file is damaged, a value is not finite, or a complete expert was imported from another
            trajectory.
    """
    checked: set[Path] = set()
    for expert in range(len(sources)) if experts is None else experts:
        source = sources[expert]
        if store.is_complete(expert):
            _check_same(store, expert, source)
            continue
        if source.file not in checked:  # a file may hold several trajectories
            check_content(source.file, OPTION)
            checked.add(source.file)
        clear_leftovers(store.expert_folder(expert))
        _import_one(store, expert, source, evaluate)


def check_sources(store: TrajectoryStore, folder: Path | str, experts: Sequence[int]) -> None:
    """Check that the files that experts were imported from have not changed since. Missing files are ignored.

    Raises:
        ConfigurationError: a file has changed.
    """
    for expert in experts:
        source = store.summary(expert).get("source") or {}
        file = Path(folder) / str(source.get("file"))
        if file.is_file():
            _check_same(store, expert, Source(file, int(source["trajectory"])))


def export_buffers(store: TrajectoryStore, folder: Path | str, per_file: int = 1) -> list[Path]:
    """Write the complete experts of a store in the published format. Files become visible after all are written.

    Args:
        store: all its complete experts are written, in ascending order.
        folder: a folder without such files.
        per_file: trajectories per file: 1 as in AST, 10 as in MTT. This many are in memory at once.

    Returns:
        The files, ``replay_buffer_0.pt``, ``replay_buffer_1.pt``, ….

    Raises:
        ConfigurationError: the store has no complete expert or does not hold every epoch, a snapshot is damaged, or
            the folder has such files.
    """
    folder, experts = Path(folder), store.experts()
    if not experts:
        raise ConfigurationError("experts_dir", store.folder, "it has no complete expert", "run train_experts.py first")
    if len(store.schedule.stored()) <= store.epochs:
        problem = "it does not hold every epoch, and the published format cannot record which"
        remedy = "export a store with expert.every_n_epochs=1 and expert.max_epoch=null"
        raise ConfigurationError("experts_dir", store.folder, problem, remedy)
    if per_file < 1:
        raise ConfigurationError("per_file", per_file, "it must be at least 1", "give a positive whole number")
    if next(folder.glob(PATTERN), None) is not None:
        raise ConfigurationError("folder", folder, f"it holds {PATTERN} already", "name a new folder")
    parts = [experts[start : start + per_file] for start in range(0, len(experts), per_file)]
    contents = {f"replay_buffer_{n}.pt": partial(_published, store, part) for n, part in enumerate(parts)}
    return save_together(folder, contents)


def final_parameters(source: Source) -> Tensor:
    """The parameters ``[P]`` after the last epoch, float32. Call :func:`scan_buffers` first, which checks the file."""
    return torch.cat([each.detach().float().reshape(-1) for each in _trajectories(source.file)[source.trajectory][-1]])


def _trajectories(file: Path) -> Sequence[Any]:
    content = load_plain(file, OPTION)
    if not isinstance(content, list | tuple) or not content:
        problem = f"it holds a {type(content).__name__} and not a list of trajectories"
        raise ConfigurationError(OPTION, file, problem, _NOT_PUBLISHED)
    return content


def _check(source: Source, trajectory: Any, layout: ParameterLayout) -> None:
    if not isinstance(trajectory, list | tuple) or len(trajectory) < 2:
        problem = f"it is not a list of two or more epochs (a {type(trajectory).__name__})"
        raise _rejected(source, problem, _NOT_PUBLISHED)
    for epoch, snapshot in enumerate(trajectory):
        _check_snapshot(source, f"epoch {epoch}", snapshot, layout)
    if all(torch.equal(*pair) for later in trajectory[1:] for pair in zip(trajectory[0], later, strict=True)):
        problem = "its parameters are the same at every epoch: the code that saved them kept references, not copies"
        remedy = "record it again with a clone of every tensor, or take the file out of the folder"
        raise _rejected(source, problem, remedy)


def _check_snapshot(source: Source, where: str, snapshot: Any, layout: ParameterLayout) -> None:
    if not isinstance(snapshot, list | tuple) or not all(isinstance(each, Tensor) for each in snapshot):
        raise _rejected(source, f"{where} is not a list of tensors (a {type(snapshot).__name__})", _NOT_PUBLISHED)
    if len(snapshot) != len(layout):
        problem = f"{where} has {len(snapshot)} tensors, and the network has {len(layout)}"
        raise _rejected(source, problem, _SAME_NETWORK)
    for position, (tensor, (name, shape)) in enumerate(zip(snapshot, layout, strict=True)):
        if tuple(tensor.shape) != shape:
            problem = f"{where}, tensor {position} is {tuple(tensor.shape)}, and {name} of the network is {shape}"
            raise _rejected(source, problem, _SAME_NETWORK)
        if not tensor.is_floating_point():
            raise _rejected(source, f"{where}, tensor {position} is of type {tensor.dtype}", _NOT_PUBLISHED)


def _import_one(store: TrajectoryStore, expert: int, source: Source, evaluate: Evaluate) -> None:
    trajectory = _trajectories(source.file)[source.trajectory]
    history: list[dict[str, float]] = []
    theta = previous = torch.empty(0)
    for epoch, snapshot in enumerate(trajectory):
        parameters = {name: tensor.detach().float() for (name, _), tensor in zip(store.layout, snapshot, strict=True)}
        for position, (name, tensor) in enumerate(parameters.items()):
            if not tensor.isfinite().all():
                store.drop_snapshots_after(expert, -1)
                problem = f"epoch {epoch}, tensor {position} ({name}) has values that are not finite"
                raise _rejected(source, problem, "take the file out of the folder")
        if store.schedule.holds(epoch):
            store.write_snapshot(expert, epoch, parameters)
        theta = torch.cat([tensor.reshape(-1) for tensor in parameters.values()])
        if epoch > 0:
            history.append({"trajectory/movement": float((theta - previous).norm())})
        previous = theta
    history[-1] |= evaluate(expert, source, theta)
    dtype = str(trajectory[0][0].dtype).removeprefix("torch.")
    record = {"source": {**source.record(), "dtype": dtype}, "metrics": history[-1], "history": history}
    store.finish(expert, {"expert_index": expert, **record})


def _check_same(store: TrajectoryStore, expert: int, source: Source) -> None:
    earlier, now = store.summary(expert).get("source") or {}, source.record()
    if {key: earlier.get(key) for key in now} != now:
        came_from = f"{earlier.get('file')}, trajectory {earlier.get('trajectory')}"
        problem = f"expert {expert} was imported from {came_from}, but now {source} has another path or checksum"
        remedy = f"restore the files as they were, or delete {store.folder} to import them anew"
        raise ConfigurationError(OPTION, source.file.parent, problem, remedy)


def _published(store: TrajectoryStore, experts: Sequence[int]) -> list[list[list[Tensor]]]:
    """For each expert, E + 1 lists of tensors that do not share memory."""
    sizes = [torch.Size(shape).numel() for _, shape in store.layout]

    def tensors(theta: Tensor) -> list[Tensor]:
        pieces = theta.split(sizes)
        return [piece.view(shape).clone() for piece, (_, shape) in zip(pieces, store.layout, strict=True)]

    epochs = range(store.epochs + 1)
    return [[tensors(store.read_snapshot(expert, epoch)) for epoch in epochs] for expert in experts]


def _rejected(source: Source, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(OPTION, source.file.parent, f"{source}: {problem}", remedy)
