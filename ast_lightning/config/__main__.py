"""Print all options with type, default and meaning, in Markdown: ``python -m ast_lightning.config``."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from ast_lightning.config.schema import all_kinds, default_of
from ast_lightning.config.settings import type_of
from ast_lightning.reporting import take_over

_HEADER = """# Options

Every option can be set on the command line of `train_experts.py`, `distill.py` and `evaluate.py`: `distill.ipc=10`.
The values of the files in conf/ (`expert=mtt`, `experiment=digits_quickstart`, …) replace these defaults.

This file is written by `python -m ast_lightning.config > docs/options.md`.
"""


def markdown() -> str:
    """The content of docs/options.md: a table for each dataclass, with the options that it defines."""
    classes = dict.fromkeys(base for kind in all_kinds() for base in reversed(kind.__mro__) if hasattr(base, "section"))
    return "\n".join([_HEADER, *map(_table, classes)])


def _table(kind: Any) -> str:
    title = str(kind.__doc__).splitlines()[0].rstrip(".").replace("``", "`").replace(":class:`~ast_lightning.", "`")
    heading = f"## Section `{kind.section}`" if kind.section else "## Top level"
    lines = [f"{heading}: {title}", "", "| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    for each in fields(kind):
        if each.name in inspect.get_annotations(kind):
            name = f"{kind.section}.{each.name}".lstrip(".")
            kind_name = type_of(each).replace("None", "null").replace("Any", "any").replace(" | ", " or ")
            cells = (f"`{name}`", kind_name, f"`{_written(default_of(each))}`", each.metadata["help"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    """A default as it is written on the command line."""
    words = {"None": "null", "True": "true", "False": "false", "???": "required"}
    return words.get(str(value), str(value))


if __name__ == "__main__":
    take_over()
    print(markdown(), end="")
