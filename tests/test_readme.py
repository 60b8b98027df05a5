"""The README's Python runs as it stands there, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str, *pages: str) -> list[str]:
    return [
        each for page in pages for each in re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    ]


def test_python_api_and_the_plain_pytorch_that_trains_on_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, arrays, api = blocks("python", "README.md", "docs/python.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    short = arrays.replace('"distill.max_steps=60"', '"distill.max_steps=5", "evaluation.epochs=5"')
    assert short != arrays
    exec(compile(short, "README.md", "exec"), {})
    assert "torch.Size([10, 1, 8, 8])" in capsys.readouterr().out
    exec(compile(api, "README.md", "exec"), names)
    accuracies = [score["test"] for score in names["module"]._scores.values()]
    assert len(accuracies) == 5
    mean, spread = torch.tensor(accuracies).mean(), torch.tensor(accuracies).std()
    assert mean > 60  # random real images give about 70, untrained networks 10

    path = re.search(r'load_distilled\("([^"]+)"\)', plain)
    assert path is not None
    capsys.readouterr()
    torch.manual_seed(0)
    exec(compile(plain.replace(path[1], "runs/notebook/synthetic"), "README.md", "exec"), {})
    reached = float(capsys.readouterr().out.split()[0])
    assert abs(reached - mean) < max(3 * spread, 6)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_options_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for experiment in re.findall(r"experiment=(\w+)", text):
        if experiment != "mine":
            assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").exists(), experiment
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash", page)), re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
