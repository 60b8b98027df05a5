"""What the options of all sections have in common: a help text, a neutral value, checks that name the option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Optional, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ast_lightning.config.parts import check_part
from ast_lightning.errors import ConfigurationError


def option(default: Any, help: str, *, neutral: Any = MISSING, result: bool = True) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value where none is given; a list or dict is copied. None beside another neutral value: a value
            that follows from other options (see :func:`follows`).
        help: what the option does, one sentence in plain English.
        neutral: the value at which the option leaves no trace in the identity of a run: for ever the one with which a
            run is what it was before the option existed. The first default unless given. A default may change later;
            a neutral value may not.
        result: whether the option changes numbers that a run arrives at; one that does not is no part of an identity.
    """
    metadata = {"help": help, "neutral": default if neutral is MISSING else neutral, "result": result}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def follows(field: Field[Any]) -> bool:
    """Whether an option may be null and then follows from others; a settings dataclass never holds None for it."""
    return field.default is None and field.metadata["neutral"] is not None


def type_of(field: Field[Any]) -> str:
    """The type of the values that can be given, such as ``int | None``."""
    return f"{field.type} | None" if follows(field) else str(field.type)


def schema_of(kind: type[Settings]) -> DictConfig:
    """The options of a settings dataclass with their defaults, as OmegaConf checks their types."""
    types = get_type_hints(kind)
    nullable = [
        (each.name, Optional[types[each.name]] if follows(each) else types[each.name], _copied(each))  # noqa: UP045
        for each in fields(kind)
    ]
    schema: DictConfig = OmegaConf.structured(make_dataclass(kind.__name__, nullable))
    return schema


def _copied(each: Field[Any]) -> Any:
    return field(default=each.default, default_factory=each.default_factory)


def without_neutral(kind: type[Any] | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that change results and differ from the neutral value of their option.

    Args:
        kind: the settings dataclass; options that it lacks always count, and where there is none, all do.
        values: by the name of the option; numbers are compared by value, 100 equals 100.0.
    """
    metadata = {} if kind is None else {each.name: each.metadata for each in fields(kind)}
    result = {}
    for name, value in sorted(values.items()):
        about: Mapping[str, Any] = metadata.get(name, {})
        if about.get("result", True) and not ("neutral" in about and _same(about["neutral"], value)):
            result[name] = comparable(value)
    return result


def comparable(value: Any) -> Any:
    """A tree of plain containers with all numbers as floats, so that 100 and 100.0 are one value."""
    if isinstance(value, Mapping):
        return {str(key): comparable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _same(neutral: Any, value: Any) -> bool:
    neutral, value = comparable(neutral), comparable(value)
    return type(neutral) is type(value) and bool(neutral == value)  # True == 1.0


@dataclass(frozen=True)
class Settings:
    """Base of the settings dataclasses; ``section`` is the configuration section whose keys are their fields, or empty.

    The checks pass over None: a field that may be None says what that means.
    """

    section: ClassVar[str]

    def follow(self) -> dict[str, Any]:
        """What null options follow from others of this section; those that it lacks get their neutral values."""
        return {}

    def complete(self) -> None:
        """Replace null where an option follows from others: a run has a value there."""
        derived = self.follow()
        for each in fields(self):
            if follows(each) and getattr(self, each.name) is None:
                object.__setattr__(self, each.name, derived.get(each.name, each.metadata["neutral"]))

    def refused(self, name: str, problem: str, remedy: str) -> ConfigurationError:
        """The error that names the option and its value."""
        value = getattr(self, name)
        option = f"{self.section}.{name}".lstrip(".")
        return ConfigurationError(option, "null" if value is None else value, problem, remedy)

    def require_at_least(self, least: int, *names: str) -> None:
        """Reject what is no whole number, or below ``least``."""
        for name, value in self._given(names):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.refused(name, f"it must be a whole number of at least {least}", f"give {least} or more")

    def require_positive(self, *names: str) -> None:
        """Reject 0, negative numbers, infinity and NaN."""
        for name, value in self._given(names):
            if not 0 < value < math.inf:
                raise self.refused(name, "it must be positive and finite", "give a number above 0")

    def require_not_negative(self, *names: str) -> None:
        """Reject negative numbers, infinity and NaN."""
        for name, value in self._given(names):
            if not 0 <= value < math.inf:
                raise self.refused(name, "it must be finite and not negative", "give 0 or a positive number")

    def require_momentum(self, *names: str) -> None:
        """Reject what lies outside [0, 1)."""
        for name, value in self._given(names):
            if not 0 <= value < 1:
                raise self.refused(name, "it must lie in [0, 1)", "give 0 for no momentum")

    def require_choice(self, name: str, choices: Sequence[str]) -> None:
        """Reject anything but one of ``choices``."""
        if getattr(self, name) not in choices:
            raise self.refused(name, "there is no such choice", f"choose one of {', '.join(choices)}")

    def require_part(self, name: str, *choices: str) -> None:
        """Reject what is neither one of ``choices`` nor a part of the user's own."""
        check_part(getattr(self, name), choices, f"{self.section}.{name}")

    def _given(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
