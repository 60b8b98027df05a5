"""The trajectory store of a run: create, open and check it, and summarise its experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import fsum
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ast_lightning import compilation
from ast_lightning.commands.run import Run
from ast_lightning.compilation import Compilation
from ast_lightning.config.data import READ_FROM_ROOT
from ast_lightning.config.identity import arithmetic, experts_identity
from ast_lightning.data import load_preprocessing, save_preprocessing
from ast_lightning.distillation import Context
from ast_lightning.errors import ConfigurationError
from ast_lightning.experts.curriculum import curriculum
from ast_lightning.networks import FunctionalNetwork, describe_network, has_batch_of_one
from ast_lightning.parallel.devices import device_type, devices_of
from ast_lightning.parallel.locks import FolderLock
from ast_lightning.runs.checkpoints import begin_anew
from ast_lightning.runs.expert_locks import held_by_others
from ast_lightning.runs.loggers import uses_tensorboard
from ast_lightning.storage.files import clear_leftovers, read_json
from ast_lightning.storage.inspection import count
from ast_lightning.storage.provenance import provenance
from ast_lightning.storage.reading import BROKEN, reading
from ast_lightning.terminal import is_rank_zero, say
from ast_lightning.trajectories import TrajectoryStore
from ast_lightning.trajectories.records import PREPROCESSING_FILE, STORE_FILE


def context_of(run: Run) -> Context:
    """The context that a run passes to its method."""
    trainer = run.config["trainer"]
    return Context(
        data=run.data,
        make_network=run.make_network,
        seed=run.seed,
        ranks=devices_of(trainer),
        open_experts=cache(lambda: _open_experts(run)),
        check_experts=cache(lambda store: check_store(store, run)),
        choose_compilation=lambda passes, never: choose_compilation(run, passes, never),
        schedule=None if run.config["experts_dir"] else run.expert.schedule,
    )


def choose_compilation(run: Run, forward_passes: float, never: str | None = None) -> Compilation:
    """Decide whether to compile a run, given the estimated work, and print the choice.

    Args:
        run: its data must be set up.
        forward_passes: the work of the whole run as configured, in forward passes of one image.
        never: why this run cannot be compiled; None if it can.

    Raises:
        ConfigurationError: the network is not supported, or ``compile=true`` and compilation is not possible.
    """
    option, images = run.config["compile"], torch.zeros(2, run.data.channels, *run.data.image_size)
    network = FunctionalNetwork(run.network())
    network.require_pure(images[0], run.data.num_classes)
    if run.distill.needs_experts:
        network.require_second_derivatives(images[0])
    if never and option is True:
        raise ConfigurationError("compile", "true", never, "set compile=auto")
    if never is None and run.fast_dev_run and option == "auto":
        never = "auto: fast_dev_run"
    if never:
        choice = Compilation(reason=never)
    else:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(network.initial_parameters(0), images)
        flops = counter.get_total_flops() / len(images) * forward_passes
        choice = compilation.choose_compilation(option, device_type(run.config["trainer"]), flops)
    say(f"compile: {choice}")
    return choice


def _open_experts(run: Run) -> tuple[TrajectoryStore, list[int]]:
    """Open the store of a run; return it with its ``num_experts`` experts, or all complete ones of ``experts_dir``.

    Raises:
        ConfigurationError: there is no store, or some of the experts are not complete.
    """
    store = open_store(run)
    experts, number = experts_in_use(store, run), run.config["num_experts"]
    if run.config["experts_dir"]:
        if incomplete := store.incomplete():
            left_out = count(len(incomplete), "incomplete expert")
            say(f"note: {left_out} in {store.folder} will not be used, the first is expert {incomplete[0]}")
        if experts and len(experts) != number:
            used = count(len(experts), "complete expert")
            say(f"note: experts_dir has {used}, and uses them all: num_experts={number} does not choose among them")
    elif missing := sorted({*range(number)} - {*experts}):
        problem = f"{len(missing)} of them are not complete in {store.folder}, the first is expert {missing[0]}"
        remedy = f"let train_experts.py finish, or set num_experts={missing[0]}"
        raise ConfigurationError("num_experts", number, problem, remedy if missing[0] else "run train_experts.py")
    store.check_files(experts)
    _check_movement(store, experts)
    return store, experts


def _check_movement(store: TrajectoryStore, experts: Sequence[int]) -> None:
    """Reject experts whose parameters are the same after every epoch.

    Raises:
        ConfigurationError: naming the first one.
    """
    for expert in experts:
        history = store.summary(expert).get("history", [])
        if history and all(row.get("trajectory/movement") == 0 for row in history):
            problem = f"the parameters of expert {expert} never change"
            raise ConfigurationError(
                "experts_dir", store.folder, problem, "train it with a larger expert.lr, or leave it out"
            )


def experts_in_use(store: TrajectoryStore, run: Run) -> list[int]:
    """The complete experts among the ``num_experts`` of a run, or all complete ones of ``experts_dir``."""
    return [each for each in store.experts() if run.config["experts_dir"] or each < run.config["num_experts"]]


def open_store(run: Run) -> TrajectoryStore:
    """Open the store of a run.

    Raises:
        ConfigurationError: the store is damaged, or there is none; then the message names the most similar store beside
            it and the options that differ.
    """
    folder, wanted = run.experts_folder(), _options(experts_identity(run.config))
    if run.config["experts_dir"] or (folder / STORE_FILE).exists():
        return TrajectoryStore.open(folder)
    data = run.config["data"]
    if data["source"] in tuple(READ_FROM_ROOT) and data["root"] and not Path(data["root"]).expanduser().exists():
        run.data.setup()  # a wrong path is the likely reason why there are no experts; the error names it
    others = []
    for path in sorted(folder.parent.glob(f"*/{STORE_FILE}")):
        with suppress(OSError, *BROKEN):  # skip stores of another version and damaged ones
            recorded = _options(experts_identity(read_json(path)["config"]))
            names = sorted(name for name in {*wanted, *recorded} if wanted.get(name) != recorded.get(name))
            others.append((len(names), str(path.parent), {each: recorded.get(each, "its default") for each in names}))
    problem, remedy = (
        f"it holds no trajectories: it has no {STORE_FILE}",
        "run train_experts.py with the same settings",
    )
    if others:
        _, nearest, differs = min(others, key=lambda each: each[:2])
        here = {name: wanted.get(name, "its default") for name in differs}
        pairs = [(name, *map(_shown, (value, here[name]))) for name, value in list(differs.items())[:4]]
        listed = ", ".join(f"{name}={theirs} (here {ours})" for name, theirs, ours in pairs)
        problem += f"; the nearest of {count(len(others), 'store')} beside it, {nearest}, has {listed}"
        problem += f" and {len(differs) - 4} other different options" if len(differs) > 4 else ""
        remedy += " first, or give it the options of that store"
        if differs.keys() <= {"data.root", "data.name"}:
            remedy = f"set experts_dir={nearest} if these are the same images, or {remedy}"
    raise ConfigurationError("experts_dir", folder, problem, remedy)


def _options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an identity by their full names."""
    sections = ((name, value if isinstance(value, Mapping) else {"": value}) for name, value in identity.items())
    return {f"{name}.{key}".rstrip("."): value for name, section in sections for key, value in section.items()}


def _shown(value: Any) -> Any:
    """A value of an identity as a user writes it: an identity stores every number as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_store(store: TrajectoryStore, run: Run) -> None:
    """Reject trajectories that were trained with another network, other data or other preprocessing.

    Raises:
        ConfigurationError: naming what differs.
    """
    other = "leave experts_dir out" if run.config["experts_dir"] else None
    store.require("network", describe_network(run.network()), other=other)
    described = run.data.describe()
    for ignored in ("preprocessing_fingerprint", "augmentation"):
        described.pop(ignored)
    store.require("data", described, partly=True, other=other)
    store.check_preprocessing()
    path = store.folder / PREPROCESSING_FILE
    remedy = f"write it from Python: save_preprocessing({str(path)!r}, data.preprocessing)"
    with reading(path, remedy, "experts_dir", store.folder):
        different = run.data.preprocessing.difference(load_preprocessing(path))
    if different:
        problem = f"its {different} differs from that of the trajectories in {store.folder}"
        remedy = "use the data and preprocessing options that the experts were trained with"
        raise ConfigurationError("data.preprocessing", run.data.preprocessing.kind, problem, remedy)


def wanted_experts(run: Run) -> list[int]:
    """The experts that this run trains or imports: ``expert_index``, or all of ``num_experts``."""
    index = run.config["expert_index"]
    return list(range(run.config["num_experts"])) if index is None else [index]


def incomplete(store: TrajectoryStore, experts: Sequence[int]) -> list[int]:
    """The entries of ``experts`` that are not complete."""
    return [expert for expert in experts if not store.is_complete(expert)]


def expert_results(store: TrajectoryStore, experts: Sequence[int]) -> dict[str, float]:
    """Means over complete experts: ``test_accuracy`` in per cent, ``movement`` per epoch, and ``cross_entropy`` of the
    last epoch. A value that some experts do not record is left out.
    """
    summaries = [store.summary(expert) for expert in experts]
    last = [summary.get("metrics", {}) for summary in summaries]
    epochs = [row for summary in summaries for row in summary.get("history", [])]
    wanted = (
        ("test_accuracy", "test/accuracy", last, 100.0),
        ("movement", "trajectory/movement", epochs, 1.0),
        ("cross_entropy", "train/cross_entropy", last, 1.0),
    )
    return {
        name: unit * fsum(row[key] for row in rows) / len(rows)
        for name, key, rows, unit in wanted
        if rows and all(key in row for row in rows)
    }


def how_to_resume(run: Run) -> str:
    """How to resume a run that stopped early, as text for a message."""
    longer = ", with a larger trainer.max_time: it counts all sessions together"
    return f"rerun the command to resume{longer if run.config['trainer'].get('max_time') else ''}"


def summarise(run: Run, store: TrajectoryStore, experts: Sequence[int]) -> dict[str, float]:
    """Print and return :func:`expert_results` of the complete experts; an empty dict if there are none."""
    missing = incomplete(store, experts)
    if missing:  # stopped by the Trainer's max_time, or another rank is still writing them
        say(f"{len(missing)} of {len(experts)} experts are incomplete: {how_to_resume(run)}")
    complete = [expert for expert in experts if expert not in missing]
    if not complete:
        return {}
    results = expert_results(store, complete)
    movement = "movement {:.3f} (distance of the parameters per epoch)"
    found = (("test_accuracy", "test accuracy {:.1f} %"), ("movement", movement))
    parts = [text.format(results[name]) for name, text in found if name in results]
    say(f"{count(len(complete), 'expert')}: {', '.join(parts) or 'no accuracy is recorded'}")
    say(f"trajectories: {store.folder}")
    if uses_tensorboard(run.loggers) and not run.config["buffers"]:
        say(f"TensorBoard:  tensorboard --logdir {store.folder}")
    return results


def make_store(run: Run, **differs: Any) -> TrajectoryStore:
    """Create or open the store of this run; only rank 0 writes.

    Args:
        run: its data must be set up.
        differs: entries of the store's description that replace those of experts that are trained here.

    Raises:
        ConfigurationError: the folder contains trajectories of another network, other data or other settings.
    """
    folder = run.experts_folder()
    image, network = torch.zeros(run.data.channels, *run.data.image_size), FunctionalNetwork(run.network())
    network.require_pure(image, run.data.num_classes, batch=_smallest_batch(run))
    if run.distill.needs_experts:
        network.require_second_derivatives(image)
    data = run.data.describe()
    # whitening matrices differ in their last bits between machines and numbers of threads: recorded, but not compared
    fingerprint = data.pop("preprocessing_fingerprint")
    metadata = {
        "network": describe_network(run.network()),
        "data": data,
        "preprocessing_fingerprint": fingerprint,
        "expert": run.expert.describe(),
        "epochs": run.expert.epochs,
        "seed": run.seed,
        "arithmetic": arithmetic(run.config),
        **provenance(),
        "config": run.config,
        **differs,
    }
    if not is_rank_zero():
        return TrajectoryStore(folder, metadata)
    preprocessing = folder / PREPROCESSING_FILE
    if (folder / STORE_FILE).exists() and preprocessing.exists() and not run.fresh:
        return TrajectoryStore.create(folder, metadata)  # nothing to write
    with FolderLock(folder / "store") as lock:  # inside, because a user may be allowed to write only to this folder
        lock.take(seconds=-1)
        if run.fresh and (folder / STORE_FILE).exists():
            _begin_anew_if_other(folder, metadata)
        clear_leftovers(folder)
        store = TrajectoryStore.create(folder, metadata)
        if not preprocessing.exists():
            save_preprocessing(preprocessing, run.data.preprocessing)
    return store


def _smallest_batch(run: Run) -> int:
    """1 if a batch of some epoch has one image, otherwise 2, which stands for any larger batch."""
    expert, labels = run.expert, run.data.train.labels
    sizes = {len(labels)}
    if expert.samples == "curriculum":
        scores = torch.zeros(len(labels))
        sizes |= {len(curriculum(epoch, labels, scores, expert.epochs)) for epoch in range(expert.epochs)}
    return 1 if any(has_batch_of_one(size, expert.batch_size) for size in sizes) else 2


def _begin_anew_if_other(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Move a store aside if its inputs differ, for example because images have changed.

    Raises:
        ConfigurationError: another process is training one of its experts.
    """
    try:
        TrajectoryStore.create(folder, metadata)
    except ConfigurationError as error:
        store = TrajectoryStore.open(folder)
        if busy := held_by_others(store, [*store.experts(), *store.incomplete()]):
            problem = f"another process trains expert {busy[0]} in {folder}, and {error.problem}"
            raise ConfigurationError("fresh", "true", problem, "let it finish") from error
        begin_anew(folder)
