"""``python -m ast_lightning.synthetic``: inspect, verify, export and import distilled datasets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ast_lightning.errors import ConfigurationError
from ast_lightning.reporting import take_over
from ast_lightning.storage.inspection import console, print_findings, print_json, run_command
from ast_lightning.storage.reading import reading
from ast_lightning.synthetic.lineage import ancestry_page


def main(words: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit status: 0 on success, 1 if ``verify`` finds damage, 2 for an error that the user can fix.
    """
    return run_command(_parser(), words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ast_lightning.synthetic", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="info | verify | export | import")
    info = commands.add_parser("info", help="describe a distilled dataset and its inputs")
    verify = commands.add_parser("verify", help="compare every file with its checksum; status 1 if one differs")
    for each, run in ((info, _info), (verify, _verify)):
        each.add_argument("folder", type=Path, help="a distilled dataset")
        each.add_argument("--json", action="store_true", help="print JSON")
        each.set_defaults(run=run)
    export = commands.add_parser("export", help="write images_NAME.pt, labels_NAME.pt and lr_NAME.pt")
    export.add_argument("folder", type=Path, help="a distilled dataset")
    export.add_argument("out", type=Path, help="the folder to write into")
    export.add_argument("--name", help="the iteration by default; other programs look for “best”")
    export.set_defaults(run=_export)
    take = commands.add_parser("import", help="make a distilled dataset from images_NAME.pt and labels_NAME.pt")
    take.add_argument("images", type=Path, help="images_NAME.pt, or the folder of one such set")
    take.add_argument("out", type=Path, help="the folder to make")
    take.add_argument(
        "--like",
        type=Path,
        required=True,
        help="a trajectory store or distilled dataset of the same data: it gives preprocessing and class names",
    )
    take.add_argument("--learning-rate", type=float, help="learning rate of SGD on these images; lr_NAME.pt by default")
    take.add_argument("--canvas", type=int, default=1, help="side of a canvas in image sides, for textures; 1: images")
    take.set_defaults(run=_import)
    return parser


def _info(options: argparse.Namespace) -> int:
    from ast_lightning.synthetic.dataset import load_distilled, read_description  # late, as below: they import torch

    load_distilled(options.folder, "folder")  # raises if the dataset is damaged
    description = read_description(options.folder, "folder")
    if options.json:
        print_json({"folder": str(options.folder), **description})
    else:
        with reading(options.folder / "dataset.json", "copy it again", "folder", options.folder):
            page = ancestry_page(str(options.folder), description)
        console().print(page)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from ast_lightning.synthetic.verification import verify_distilled

    findings = verify_distilled(options.folder)
    about = {"folder": str(options.folder), "ok": not any(each.remedy for each in findings)}
    return print_findings(findings, str(options.folder), about, as_json=options.json)


def _export(options: argparse.Namespace) -> int:
    from ast_lightning.synthetic.dataset import load_distilled
    from ast_lightning.synthetic.interchange import export_published

    for path in export_published(load_distilled(options.folder, "folder"), options.out, options.name):
        print(path)
    return 0


def _import(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise ConfigurationError("out", options.out, "it already exists", "name a new folder")
    from ast_lightning.synthetic.dataset import save_distilled
    from ast_lightning.synthetic.interchange import import_published, read_likeness

    dataset = import_published(options.images, read_likeness(options.like), options.learning_rate, options.canvas)
    if note := dataset.metadata["imported"].get("labels"):
        print(f"note: the soft labels are the {note}")
    print(save_distilled(options.out, dataset))
    return 0


if __name__ == "__main__":
    take_over()
    sys.exit(main())
