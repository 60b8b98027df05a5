"""Where a distilled dataset comes from, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from ast_lightning.storage.inspection import cell

Rows = Iterator[tuple[str, str]]


def ancestry_page(folder: str, description: Mapping[str, Any]) -> Table:
    """A table with a section each for the set, its making, its data, its trajectories and an earlier set.

    Args:
        folder: for the title.
        description: the content of ``dataset.json``.
    """
    table = Table(title=f"distilled dataset {cell(folder)}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    sections = [
        _the_set(description),
        _made(description),
        _data(description.get("data") or {}),
        _trajectories(description.get("trajectories") or {}),
        _warm_start(description.get("warm_start") or {}),
        _imported(description.get("imported") or {}),
    ]
    for rows in sections:
        for name, value in rows:
            table.add_row(cell(name), cell(value))
        table.add_section()
    return table


def _the_set(description: Mapping[str, Any]) -> Rows:
    count, *shape = description["shape"]
    classes = len(description["class_names"])
    yield "images", f"{count} of {shape}: {count // classes} for each of {classes} classes"
    yield "classes", _some(description["class_names"])
    yield "learning rate", f"{description['learning_rate']:g}"
    yield "preprocessing", _values(description["preprocessing"])
    yield "augmentation", description["augmentation"] or "none"
    if "iteration" in description:
        yield "iteration", str(description["iteration"])
    for name, value in (description.get("accuracy") or {}).items():
        yield name, f"{value:.1f} %"
    yield "checksum", description["checksums"]["images.safetensors"]


def _made(description: Mapping[str, Any]) -> Rows:
    yield from _maker("made", description)
    if "seed" in description:
        yield "seed", str(description["seed"])
    if description.get("network"):
        yield "network", _network(description["network"])
    distill = (description.get("config") or {}).get("distill")
    if distill:
        yield "method", _values(distill)
    if description.get("evaluation"):
        yield "evaluated with", _values(description["evaluation"])


def _data(data: Mapping[str, Any]) -> Rows:
    if data:
        yield "data", f"{data.get('name')}, fingerprint {data.get('fingerprint')}"
        yield "counts", _values(data.get("counts") or {})


def _trajectories(record: Mapping[str, Any]) -> Rows:
    if not record:
        return
    yield "trajectories", f"{record.get('id')} in {record.get('folder')}"
    experts = record.get("experts") or []
    yield "experts", f"{len(experts)} ({_some(experts)}) of {record.get('epochs')} epochs, seed {record.get('seed')}"
    yield "trained with", _values(record.get("expert") or {})
    sources = [
        f"{each['file']} [{each['trajectory']}] {each['checksum']}" for each in (record.get("sources") or {}).values()
    ]
    if sources:
        yield "imported from", _some(sources)
    data = record.get("data") or {}
    yield "trained on", f"{data.get('name')}, fingerprint {data.get('fingerprint')}"
    yield from _maker("their making", record)


def _warm_start(record: Mapping[str, Any]) -> Rows:
    if record:
        origin = f"checksum {record.get('checksum')}, iteration {record.get('iteration')}"
        yield "began from", f"{record.get('folder')}: {origin}, trajectories {record.get('trajectories')}"


def _imported(record: Mapping[str, Any]) -> Rows:
    for name, checksum in (record.get("files") or {}).items():
        yield "imported", f"{name}, checksum {checksum}"
    if record:
        yield "imported like", _values(record.get("like") or {})


def _maker(title: str, record: Mapping[str, Any]) -> Rows:
    if record.get("command"):
        yield title, f"{record.get('time')}: {' '.join(record['command'])}"
    git = record.get("git")
    if git:
        yield "revision", f"{git['commit']}{' with local changes' if git['dirty'] else ''}, of the {git['of']}"
    if record.get("versions"):
        yield "versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _network(network: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in (network.get("arguments") or {}).items())
    return f"{str(network.get('target')).rpartition('.')[2]}({arguments})"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return f"{shown}, …" if len(values) > 10 else shown
