"""The origin of a distilled dataset, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ast_lightning.storage.inspection import cell

_FIRST = (
    *("shape", "crop_size", "labels", "class_names", "learning_rate", "preprocessing"),
    *("augmentation", "accuracy", "iteration"),
)
_LONG = ("parameters", "buffers")  # names and shapes of a network, which its arguments imply


def ancestry_page(folder: str, description: Mapping[str, Any]) -> Table:
    """The content of ``dataset.json``, with one row for each entry and for each part of a nested entry, such as data.

    The configuration is reduced to the method: the command and the other entries imply the rest.

    Args:
        folder: path of the dataset, for the title.
        description: the content of ``dataset.json``.
    """
    table = Table(title=f"distilled dataset {cell(folder)}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    method = {"config": {"distill": (description.get("config") or {}).get("distill") or {}}}
    ordered = {**{name: description[name] for name in _FIRST if name in description}, **description, **method}
    for name, value in ordered.items():
        parts = isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values())
        for key, part in value.items() if parts else [("", value)]:
            if part and key not in _LONG:
                table.add_row(cell(f"{name} {key}"), cell(_text(part, " " if "command" in (name, key) else ", ")))
    return table


def _text(value: Any, separator: str = ", ") -> str:
    """A value in one line; a long list is cut after ten entries."""
    if isinstance(value, Mapping):
        return separator.join(f"{key} {_text(each)}" for key, each in value.items() if key not in _LONG)
    if not isinstance(value, list | tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if separator == ", " and len(value) > 10:
        value = [*value[:10], "…"]
    return separator.join(map(_text, value))
