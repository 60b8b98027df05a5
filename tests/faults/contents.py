"""What a command leaves, in a form that can be compared: every byte that is promised to be the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ast_lightning.storage.files import read_json

_LOGS = ("tensorboard", "csv", ".locks", "earlier")
_OF_THE_MOMENT = ("time", "command", "checksum")


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files below ``folder`` save logs and locks, by path; of a link, where it points to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(_LOGS) for part in parts) or "checkpoints" in parts:
            continue
        name = "/".join(parts)
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.suffix == ".json":
            found[name] = hashlib.sha256(json.dumps(_lasting(read_json(path)), sort_keys=True).encode()).hexdigest()
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for state in folder.rglob("checkpoints/last.ckpt"):
        found["/".join(state.relative_to(folder).parts)] = _state(state)
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The paths that only one has, or that differ."""
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))


def _lasting(content: Any) -> Any:
    """Plain containers without what belongs to the moment at which they were written, and checksums that cover it."""
    if isinstance(content, dict):
        return {key: _lasting(value) for key, value in content.items() if key not in _OF_THE_MOMENT}
    return [_lasting(item) for item in content] if isinstance(content, list) else content


def _state(path: Path) -> str:
    """X, α, momenta and what evaluations found; the loops' counters may differ between sittings."""
    state = torch.load(path, weights_only=True)
    kept = {key: state[key] for key in ("global_step", "state_dict", "optimizer_states", "callbacks", "lr_schedulers")}
    digest = hashlib.sha256()
    _add(digest, kept)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
