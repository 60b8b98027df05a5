"""Print all options with type, default and help: ``python -m ast_lightning.config [SECTION] [--markdown]``."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.root import RootSettings
from ast_lightning.config.schema import SECTIONS, default_of
from ast_lightning.config.settings import Settings

_HEADER = """# Options

Every option can be set on the command line of `train_experts.py`, `distill.py` and `evaluate.py`: `distill.ipc=10`.
The values of the files in conf/ (`expert=mtt`, `experiment=digits_quickstart`, …) replace these defaults.

This file is written by `python -m ast_lightning.config --markdown > docs/options.md`.
"""

Row = tuple[str, str, str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the options of one section, or of all."""
    parser = argparse.ArgumentParser(prog="python -m ast_lightning.config", description="Print all options.")
    parser.add_argument("section", nargs="?", choices=["root", *SECTIONS], help="all sections unless given")
    parser.add_argument("--markdown", action="store_true", help="as docs/options.md")
    given = parser.parse_args(arguments)
    if given.markdown:
        print(markdown(), end="")
        return
    for name, title, rows in _tables():
        if given.section in (None, name):
            print(textwrap.fill(f"{name}: {title}", 76), end="\n\n")
            for option, kind, default, meaning in rows:
                print(f"{option}={default} ({kind})")
                print(textwrap.fill(meaning, 76, initial_indent="    ", subsequent_indent="    "))
            print()


def markdown() -> str:
    """The content of docs/options.md."""
    parts = [_HEADER]
    for name, title, rows in _tables():
        lines = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
        for option, kind, default, meaning in rows:
            cells = (f"`{option}`", kind, f"`{default}`", meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        heading = "Top level" if name == "root" else f"Section `{name}`"
        parts.append(f"## {heading}: {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _tables() -> Iterator[tuple[str, str, list[Row]]]:
    """For each dataclass the section, a title, and a row for every option that its base does not have."""
    yield "root", _title(RootSettings), list(_rows(RootSettings))
    for section, kinds in SECTIONS.items():
        if section == "distill":
            yield section, _title(DistillSettings), list(_rows(DistillSettings))
        for kind in kinds:
            yield section, _title(kind), list(_rows(kind))


def _title(kind: type[Settings]) -> str:
    text = str(kind.__doc__).splitlines()[0].rstrip(".")
    return text.replace("``", "`").replace(":class:`~ast_lightning.", "`")


def _rows(kind: type[Settings]) -> Iterator[Row]:
    base = DistillSettings if issubclass(kind, DistillSettings) and kind is not DistillSettings else None
    inherited = {each.name for each in fields(base)} if base else set()
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in inherited:
            name = f"{kind.section}.{each.name}".lstrip(".")
            kind_name = str(each.type).replace("None", "null").replace("Any", "any").replace(" | ", " or ")
            yield name, kind_name, _written(default_of(each)), each.metadata["help"]


def _written(value: Any) -> str:
    """A default as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "required" if value == "???" else str(value)


if __name__ == "__main__":
    main()
