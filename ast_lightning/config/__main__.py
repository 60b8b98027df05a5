"""Print all options with type, default and meaning, in Markdown: ``python -m ast_lightning.config``."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from ast_lightning.config.allowed import LIMITS, Allowed
from ast_lightning.config.schema import all_kinds, default_of
from ast_lightning.reporting import take_over

_HEADER = f"""# Options

Every option can be set on the command line of `train_experts.py`, `distill.py` and `evaluate.py`: `distill.ipc=10`.
The values of the files in conf/ (`expert=mtt`, `experiment=digits_quickstart`, …) replace these defaults.
Range of numbers: {LIMITS}.

Text with spaces, brackets, accents or a leading `~` needs two pairs of quotes, one for the shell and one for Hydra:
`'data.root="~/my images (2024)"'`. A list is `'data.mean=[0.5,0.5,0.5]'`. To pass another argument
to a class of your own, put a `+` before it: `+network.heads=4`.

This file is written by `python -m ast_lightning.config > docs/options.md`.
"""


def markdown() -> str:
    """The content of docs/options.md: a table for each dataclass, with the options that it defines."""
    classes = dict.fromkeys(base for kind in all_kinds() for base in reversed(kind.__mro__) if hasattr(base, "section"))
    return "\n".join([_HEADER, *map(_table, classes)])


def _table(kind: Any) -> str:
    title = str(kind.__doc__).splitlines()[0].rstrip(".").replace("``", "`").replace(":class:`~ast_lightning.", "`")
    heading = f"## Section `{kind.section}`" if kind.section else "## Top level"
    lines = [f"{heading}: {title}", "", "| option | values | default | meaning |", "| --- | --- | --- | --- |"]
    for each in fields(kind):
        if each.name in inspect.get_annotations(kind):
            name = f"{kind.section}.{each.name}".lstrip(".")
            values = str(Allowed.by(each)).replace("{_target_: package.module.name}", "`{_target_: …}`")
            cells = (f"`{name}`", values, f"`{_written(default_of(each))}`", each.metadata["help"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    """A default as it is written on the command line."""
    words = {"None": "null", "True": "true", "False": "false", "???": "required"}
    return words.get(str(value), str(value))


if __name__ == "__main__":
    take_over()
    print(markdown(), end="")
