"""Every option with values that nobody wants: success, or one line that names the option.

``FUZZ_CASES=20000 pytest tests/config/test_fuzz.py`` tries so many cases in each test, other ones each time.
"""

from __future__ import annotations

import json
import math
import os
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from ast_lightning.commands.app import build_run
from ast_lightning.config.composition import is_rejection, rejection
from ast_lightning.config.schema import SECTIONS, known_options
from ast_lightning.errors import ConfigurationError

CASES = int(os.environ.get("FUZZ_CASES", 60))
FUZZ = settings(
    max_examples=CASES, derandomize=CASES <= 150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
OPTIONS = known_options()
CONF = Path(__file__).parents[2] / "conf"
ELSEWHERE = {  # options that an error about several may name instead of the one that was given
    "distill.syn_steps": ("distill.expert_epochs", "distill.intermediate"),
    "distill.recompute": ("distill.engine",),
    "distill.engine": ("distill.split", "distill.recompute"),
    "data.root": ("data.source",),
    "data.mean": ("data.std",),
    "trainer.devices": ("trainer.accelerator", "trainer.num_nodes"),
}
WORDS = "x|-|~|~/x|x(1)|ü|日本|a b|a=b|a,b|[|{|'|\"|\\|${|${seed}|${nothing}|\\${seed}|???|null|None|true|yes|0|1|nan"
ODDITIES = ("", " ", "0x10", "1_000", "../..", "/", "a\nb", "a\x00b", "\x1b[31m", "\u202e", "\ud800", "😀", "x" * 5000)
TEXTS = st.sampled_from((*WORDS.split("|"), *ODDITIES, "auto", "none", "digits", "a.b", ".")) | st.text(max_size=12)
WHOLE = (0, 1, -1, 2, 3, 7, 100, 2**31, 2**32, 2**63, -(2**63), 10**12, 10**12 + 1, 10**30, 10**400, -(10**400))
REAL = (0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 2.5, 1e-6, 1e-30, 1e-31, 5e-324, 1e30, 1e31, 3.5e38, 1.7e308)
NUMBERS = st.sampled_from((*WHOLE, *REAL, math.nan, math.inf, -math.inf))
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
KEYS = st.sampled_from(["a", "_target_", "_partial_", "_convert_", "_args_", "x"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)


def bounds(option: str) -> dict[str, Any]:
    found: dict[str, Any] = OPTIONS[option].metadata["allowed"]
    return found


def types(option: str) -> list[str]:
    field = OPTIONS[option]
    return str(field.metadata["type"] or field.type).split(" | ")


def allowed(option: str) -> st.SearchStrategy[Any]:
    """Values that the option takes."""
    limits = bounds(option)
    low, high = limits.get("least", limits.get("above")), limits.get("most", limits.get("below"))
    whole = st.integers(0 if low is None else math.ceil(low), 10**12 if high is None else int(high))
    real = st.floats(
        low or 1e-30,
        1e30 if high is None else high,
        exclude_max="below" in limits,
    ) | st.just(low if "least" in limits else 1 if high is None else high / 2)
    text = st.sampled_from(limits["choices"] or ["x", "some text", "ü/(1)"])
    part = st.just({"_target_": "builtins.max"})
    made = {"int": whole, "float": real, "str": text, "bool": st.booleans(), "None": st.none(), "part": part}
    made |= {f"list[{kind}]": st.lists(strategy, max_size=3) for kind, strategy in made.items()}
    made["list[str/part]"] = st.lists(text | part, max_size=3)
    made["list[str/int]"] = st.lists(text | whole, max_size=3)
    made["mapping"] = st.just({"x": 1})
    return st.one_of([made[kind] for kind in types(option)])


def near_bounds(option: str) -> st.SearchStrategy[Any]:
    values = [value for name, value in bounds(option).items() if name != "choices"] or [0]
    steps = (-1, 0, 1, -1e-9, 1e-9, 0.5)
    return st.sampled_from([value + step for value in values for step in steps])


def sound(value: Any, kind: str, limits: dict[str, Any]) -> bool:
    """Whether a value is of a type and within bounds, said once more and in other words."""
    if kind.startswith("list["):
        kinds = kind[5:-1].split("/")
        return isinstance(value, list) and all(any(sound(each, one, limits) for one in kinds) for each in value)
    if kind in ("int", "float"):
        right = type(value) in ((int,) if kind == "int" else (int, float))
        if (
            not right
            or not math.isfinite(value)
            or not (value == 0 or 1e-30 <= abs(value) <= {"int": 1e12, "float": 1e30}[kind])
        ):
            return False
        below, above = value < limits.get("least", value), value > limits.get("most", value)
        return not (below or above or value <= limits.get("above", -1e99) or value >= limits.get("below", 1e99))
    if kind == "str":
        text = isinstance(value, str) and value.strip() != "" and not any(ord(each) < 32 for each in value)
        return text and (not limits["choices"] or value in limits["choices"])
    if kind == "part":
        return isinstance(value, dict) and isinstance(value["_target_"], str)
    return type(value) is {"bool": bool, "None": type(None)}[kind]


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@cache
def base(method: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[f"method={method}"])


def attempt(word: str, option: str) -> dict[str, Any] | ConfigurationError:
    """The checked configuration with one override of an option, its objects built, or the error in one line.

    Any other exception is a fault.
    """
    section, _, name = option.rpartition(".")
    config = deepcopy(base("dm" if section == "distill" and name not in base("ast")["distill"] else "ast"))
    try:
        try:
            parsed = OverridesParser.create().parse_overrides([word])
            ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
        except Exception as error:
            if is_rejection(error):
                raise rejection(error, [word]) from error
            raise
        return build_run(config).config
    except ConfigurationError as error:
        text = str(error)
        assert 10 < len(text) < 1500
        assert not any(ord(each) < 32 or ord(each) in (0x7F, 0x85, 0x2028) for each in text)
        return error


def value_of(config: dict[str, Any], option: str) -> Any:
    section, _, name = option.rpartition(".")
    return config[section][name] if section else config[name]


OPTION = st.sampled_from(sorted(OPTIONS))
SIGN = st.sampled_from(["", "+", "++", "~"])


@FUZZ
@given(option=OPTION, sign=SIGN, bare=st.booleans(), data=st.data())
def test_an_odd_value_is_rejected_by_name_or_sound(option: str, sign: str, bare: bool, data: st.DataObject) -> None:
    value = data.draw(near_bounds(option) | NUMBERS | TEXTS | ANYTHING)
    word = f"{sign}{option}={value if bare and isinstance(value, str) else written(value)}"
    result = attempt(word, option)
    if isinstance(result, ConfigurationError):
        named = result.option.lstrip("+~").partition("[")[0]
        assert named.startswith(option) or option in ELSEWHERE.get(named, ()), f"{word!r}: {result}"
    elif not option.endswith("._target_"):  # that of another class, whose options are its own
        found = value_of(result, option)
        assert any(sound(found, kind, bounds(option)) for kind in types(option)), f"{word!r} became {found!r}"
        if isinstance(found, int | float) and isinstance(value, int | float) and "bool" not in types(option):
            assert float(found) == float(value), f"{word!r} became {found!r}"


@pytest.mark.slow
@FUZZ
@given(option=OPTION.filter(lambda name: not name.endswith("._target_")), data=st.data())
def test_a_value_within_the_range_is_not_called_wrong(option: str, data: st.DataObject) -> None:
    value = data.draw(allowed(option))
    result = attempt(f"{option}={written(value)}", option)
    if isinstance(result, ConfigurationError):  # it does not suit another option
        assert not result.problem.startswith("it must be "), f"{option}={value!r}: {result}"
    else:
        assert value_of(result, option) == value


@FUZZ
@given(option=OPTION, tail=st.sampled_from(["x", "s", "_", ".x", "1", ".x.y"]), sign=SIGN)
def test_a_name_that_does_not_exist_is_rejected(option: str, tail: str, sign: str) -> None:
    name = option + tail
    if name not in OPTIONS:
        result = attempt(f"{sign}{name}=1", option)
        assert isinstance(result, ConfigurationError)
        assert name.startswith(result.option.lstrip("~+"))


@pytest.mark.parametrize("name", sorted({*OPTIONS, *SECTIONS}))
def test_nothing_can_be_removed(name: str) -> None:
    result = attempt(f"~{name}", name)
    assert isinstance(result, ConfigurationError)
    assert result.option.lstrip("~") == name
