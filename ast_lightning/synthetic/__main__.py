"""``python -m ast_lightning.synthetic``: look at distilled datasets, verify them, exchange them with other codes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ast_lightning.errors import ConfigurationError
from ast_lightning.synthetic.dataset import load_distilled, read_description, save_distilled
from ast_lightning.synthetic.interchange import export_published, import_published, read_likeness
from ast_lightning.synthetic.lineage import ancestry_page
from ast_lightning.synthetic.verification import verify_distilled

_PAGE_WIDTH = 120  # where the output is no terminal


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 where ``verify`` finds damage, 2 for a mistake, which is named.
    """
    arguments = _parser().parse_args(words)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror or error}", file=sys.stderr, flush=True)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ast_lightning.synthetic", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="info | verify | export | import")
    info = commands.add_parser("info", help="what a distilled dataset is, and what it was made from")
    verify = commands.add_parser("verify", help="compare every file with what was written; status 1 where one differs")
    for each, command in ((info, _info), (verify, _verify)):
        each.add_argument("folder", type=Path, help="a distilled dataset")
        each.add_argument("--json", action="store_true", help="for programs")
        each.set_defaults(command=command)
    export = commands.add_parser("export", help="write images_NAME.pt, labels_NAME.pt and lr_NAME.pt")
    export.add_argument("folder", type=Path, help="a distilled dataset")
    export.add_argument("out", type=Path, help="the folder to write into")
    export.add_argument("--name", help="the iteration by default; other programs look for “best”")
    export.set_defaults(command=_export)
    take = commands.add_parser("import", help="make a distilled dataset from images_NAME.pt and labels_NAME.pt")
    take.add_argument("images", type=Path, help="images_NAME.pt, or the folder of one such set")
    take.add_argument("out", type=Path, help="the folder to make")
    take.add_argument(
        "--like",
        type=Path,
        required=True,
        help="a trajectory store or distilled dataset of the same data: it gives preprocessing and class names",
    )
    take.add_argument("--learning-rate", type=float, help="of SGD on these images; lr_NAME.pt by default")
    take.set_defaults(command=_import)
    return parser


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PAGE_WIDTH)


def _info(arguments: argparse.Namespace) -> int:
    load_distilled(arguments.folder, "folder")  # what is told of a set is told of a sound one
    description = read_description(arguments.folder, "folder")
    if arguments.json:
        print(json.dumps({"folder": str(arguments.folder), **description}, indent=2, ensure_ascii=False))
    else:
        _console().print(ancestry_page(str(arguments.folder), description))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    findings = verify_distilled(arguments.folder)
    bad = any(finding.bad for finding in findings)
    if arguments.json:
        files = [asdict(finding) for finding in findings]
        print(json.dumps({"folder": str(arguments.folder), "ok": not bad, "files": files}, indent=2))
        return int(bad)
    table = Table()
    for column in ("file", "status", "what is wrong", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (finding.file, finding.status, finding.problem, finding.remedy)
        table.add_row(*(escape(cell) for cell in cells))
    _console().print(table)
    print(f"{arguments.folder} is {'not ' if bad else ''}what was written")
    return int(bad)


def _export(arguments: argparse.Namespace) -> int:
    for path in export_published(load_distilled(arguments.folder, "folder"), arguments.out, arguments.name):
        print(path)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    if arguments.out.exists():
        raise ConfigurationError("out", arguments.out, "it is there already", "name a new folder")
    dataset = import_published(arguments.images, read_likeness(arguments.like), arguments.learning_rate)
    print(save_distilled(arguments.out, dataset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
