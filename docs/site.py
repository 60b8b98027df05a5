"""What mkdocs calls: the front page of the site is the README, whose links start one folder higher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the README as index.md, and the files that pages link to outside of docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for name in ("LICENSE", "CITATION.cff"):
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    """Let links of pages to the README lead to the front page."""
    return markdown.replace("](../README.md", "](index.md")
