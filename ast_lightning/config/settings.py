"""What the options of all sections have in common: a help text, a neutral value, checks that name the option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, ClassVar

from ast_lightning.errors import ConfigurationError

_NEUTRAL = "neutral"


def option(default: Any, help: str, *, neutral: Any = MISSING) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value where none is given; a list or dict is copied.
        help: what the option does, one sentence in plain English.
        neutral: the value at which the option leaves no trace in the identity of a run: for ever the one with which a
            run is what it was before the option existed. The first default unless given. A default may change later;
            a neutral value may not.
    """
    metadata = {"help": help, _NEUTRAL: default if neutral is MISSING else neutral}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def without_neutral(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that differ from the neutral value of their option, for the identity of a run.

    Args:
        kind: the settings dataclass; options without a neutral value, and unknown ones, always count.
        values: by the name of the option; numbers are compared by value, 100 equals 100.0.
    """
    neutral = {each.name: each.metadata[_NEUTRAL] for each in fields(kind) if _NEUTRAL in each.metadata}
    return {
        name: _number(value)
        for name, value in sorted(values.items())
        if name not in neutral or not _same(neutral[name], value)
    }


def _same(neutral: Any, value: Any) -> bool:
    return type(_number(neutral)) is type(_number(value)) and bool(neutral == value)


def _number(value: Any) -> Any:
    """A number as a float, so that 100 and 100.0 are one value; anything else as it is."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Settings:
    """Base of the settings dataclasses; ``section`` is the configuration section whose keys are their fields.

    The checks pass over None: a field that may be None says what that means.
    """

    section: ClassVar[str]

    def refused(self, name: str, problem: str, remedy: str) -> ConfigurationError:
        """The error that names the option and its value."""
        return ConfigurationError(f"{self.section}.{name}", getattr(self, name), problem, remedy)

    def require_at_least_one(self, *names: str) -> None:
        """Reject counts below 1."""
        for name, value in self._given(names):
            if value < 1:
                raise self.refused(name, "it must be at least 1", "give a positive whole number")

    def require_positive(self, *names: str) -> None:
        """Reject 0, negative numbers and NaN."""
        for name, value in self._given(names):
            if not value > 0:
                raise self.refused(name, "it must be positive", "give a number above 0")

    def require_not_negative(self, *names: str) -> None:
        """Reject negative numbers and NaN."""
        for name, value in self._given(names):
            if not value >= 0:
                raise self.refused(name, "it must not be negative", "give 0 to turn it off")

    def require_momentum(self, *names: str) -> None:
        """Reject what lies outside [0, 1)."""
        for name, value in self._given(names):
            if not 0 <= value < 1:
                raise self.refused(name, "it must lie in [0, 1)", "give 0 for no momentum")

    def require_choice(self, name: str, choices: Sequence[str], *, or_target: bool = False) -> None:
        """Reject anything but one of ``choices``, or where allowed a mapping with ``_target_``."""
        value = getattr(self, name)
        if or_target and isinstance(value, Mapping) and "_target_" in value:
            return
        if value not in choices:
            own = ", or {_target_: package.module.name} for one of your own" if or_target else ""
            raise self.refused(name, "there is no such choice", f"choose one of {', '.join(choices)}{own}")

    def _given(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
