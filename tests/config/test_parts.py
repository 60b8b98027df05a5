"""Parts by name, as a callable, and by ``_target_``."""

from __future__ import annotations

import functools
import json
import operator
import subprocess
import sys
from typing import Any

import pytest

from ast_lightning.config.parts import check_part, describe_part, resolve
from ast_lightning.errors import ConfigurationError

HERE = __name__
VALUE = 3
BUILT_IN = {"add": operator.add}


def scaled(x: float, *, factor: float = 2.0) -> float:
    return factor * x


class Power:
    def __init__(self, exponent: int = 2) -> None:
        if exponent < 0:
            raise ArithmeticError("below zero")
        self.exponent = exponent

    def __call__(self, x: float) -> float:
        return float(x**self.exponent)


def test_a_name_and_a_callable() -> None:
    assert resolve("add", BUILT_IN, "test.part") is operator.add
    assert resolve(scaled, BUILT_IN, "test.part") is scaled


def test_a_target_with_arguments() -> None:
    assert resolve({"_target_": f"{HERE}.scaled"}, {}, "test.part") is scaled
    assert resolve({"_target_": f"{HERE}.scaled", "factor": 3}, {}, "test.part")(2) == 6
    assert resolve({"_target_": f"{HERE}.Power", "exponent": 3}, {}, "test.part")(2) == 8
    part = resolve({"_target_": f"{HERE}.Power", "_partial_": True}, {}, "test.part")
    assert part(3)(2) == 8


@pytest.mark.parametrize(
    ("value", "option", "fact"),
    [
        ("subtract", "test.part", "add"),
        (None, "test.part", "_target_"),
        (3, "test.part", "_target_"),
        ({"factor": 2}, "test.part", "_target_"),
        ({"_target_": 7}, "test.part", "_target_"),
        ({"_target_": "no.such.module"}, "test.part._target_", "imported"),
        ({"_target_": f"{HERE}.nothing"}, "test.part._target_", "nothing"),
        ({"_target_": f"{HERE}.Powr"}, "test.part._target_", f"did you mean {HERE}.Power?"),
        ({"_target_": "collections.abcd.Mapping"}, "test.part._target_", "did you mean collections.abc?"),
        ({"_target_": ""}, "test.part._target_", "package.module.name"),
        ({"_target_": f"{HERE}.scaled", "facto": 2}, "test.part._target_", "facto"),
        ({"_target_": f"{HERE}.Power", "base": 2}, "test.part._target_", "base"),
        ({"_target_": f"{HERE}.VALUE"}, "test.part._target_", "callable"),
        ({"_target_": "builtins.dict"}, "test.part._target_", "dict"),
    ],
)
def test_what_is_no_part_is_rejected_by_option_in_one_line(value: Any, option: str, fact: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(value, BUILT_IN, "test.part")
    assert caught.value.option == option
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exceptions_of_the_users_own_code_stay_theirs() -> None:
    with pytest.raises(ArithmeticError):
        resolve({"_target_": f"{HERE}.Power", "exponent": -1}, {}, "test.part")


def test_a_check_imports_nothing() -> None:
    check_part({"_target_": "no.such.module"}, (), "test.part")
    with pytest.raises(ConfigurationError, match=r"test\.part"):
        check_part("all", (), "test.part")


def test_parts_as_json() -> None:
    mapping = {"_target_": "a.b", "weight": 2.0, "names": ["x"]}
    for value, wanted in (
        ("sgd", "sgd"),
        ([], []),
        ([mapping], [mapping]),
        (scaled, f"{HERE}.scaled"),
        (Power(3), f"{HERE}.Power"),
        (functools.partial(scaled, factor=3), {"_target_": f"{HERE}.scaled", "factor": 3}),
    ):
        assert describe_part(value) == wanted
        assert json.loads(json.dumps(describe_part(value))) == wanted


def test_the_module_loads_neither_torch_nor_hydra() -> None:
    code = "import sys, ast_lightning.config.parts; print([n for n in ('torch', 'hydra') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
