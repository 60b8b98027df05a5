"""The choice to compile, and the wrapper that compiles, falls back and says why."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ast_lightning import compilation
from ast_lightning.compilation import Compilation, Compiled, choose_compilation, keep_compiled_code
from ast_lightning.errors import ConfigurationError

ON = Compilation(True, False, "test")
LONG, SHORT = 1e15, 1e9


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def test_auto_compiles_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: "/usr/bin/" + name)
    long, short = choose_compilation("auto", "cpu", LONG), choose_compilation("auto", "cpu", SHORT)
    assert long.enabled
    assert not long.required
    assert str(long) == "on (auto: a run of about 1e+15 operations is long enough to pay for it)"
    assert not short.enabled
    assert str(short) == "off (auto: a run of about 1e+09 operations is too short to pay for it)"
    assert choose_compilation(True, "cpu", SHORT) == Compilation(True, True, "compile=true")
    assert choose_compilation(False, "cpu", LONG) == Compilation(False, False, "compile=false")


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler() -> None:
    assert str(choose_compilation("auto", "cpu", LONG)) == "off (auto: no C++ compiler was found)"
    assert not choose_compilation(False, "cpu", LONG).enabled
    with pytest.raises(ConfigurationError, match=r"compile=True: no C\+\+ compiler .*set compile=auto"):
        choose_compilation(True, "cpu", LONG)


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: False)
    assert "Triton" in choose_compilation("auto", "cuda", 1e20).reason
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    assert choose_compilation("auto", "cuda", 1e20).enabled
    assert not choose_compilation("auto", "cuda", LONG).enabled  # minutes on a CPU are seconds there


def test_the_cache_is_kept_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert keep_compiled_code() == tmp_path / "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_compiled_code() == tmp_path / "ast_lightning" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ast_lightning" / "compiled")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_without_a_home_the_folder_is_torchs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled_code() is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert keep_compiled_code() is None
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_smaller_last_batch_is_compiled_once() -> None:
    compiled = Compiled("square", lambda x: (x * x).sum(), ON)
    for _ in range(6):  # more epochs than would be allowed to compile anew
        for size in (4, 4, 3):
            assert float(compiled(torch.ones(size))) == size
    assert counters["stats"]["unique_graphs"] == 2
    assert compiled.enabled


def uncompilable(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x + 1


@pytest.mark.usefixtures("fresh_compiler")
def test_what_cannot_be_compiled_runs_without_and_says_so_once() -> None:
    compiled = Compiled("the sum", uncompilable, ON)
    with pytest.warns(RuntimeWarning, match=r"the sum runs uncompiled: .+"):
        assert float(compiled(torch.ones(()))) == 2
    assert not compiled.enabled
    assert compiled.choice.reason.startswith("it failed: ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(compiled(torch.ones(()))) == 2


@pytest.mark.usefixtures("fresh_compiler")
def test_what_must_be_compiled_and_cannot_is_an_error() -> None:
    compiled = Compiled("the sum", uncompilable, Compilation(True, True, "compile=true"))
    with pytest.raises(ConfigurationError, match=r"compile=True: the sum cannot be compiled \(.*compile=auto"):
        compiled(torch.ones(()))


@pytest.mark.usefixtures("fresh_compiler")
def test_an_error_of_the_function_itself_is_shown() -> None:
    compiled = Compiled("a product", lambda x, y: x @ y, ON)
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes cannot be multiplied|inconsistent"):
        compiled(torch.ones(2, 3), torch.ones(2, 3))
    assert compiled.enabled  # it was no fault of the compiler's


def test_uncompiled_calls_what_stands_in() -> None:
    assert Compiled("the sum", uncompilable, Compilation(), lambda x: x - 1)(torch.ones(())) == 0
    assert Compiled("the sum", uncompilable, Compilation())(torch.ones(())) == 2
