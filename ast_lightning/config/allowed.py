"""The allowed values of an option: one description that is used in checks, documentation and error messages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, replace
from numbers import Integral, Real
from typing import Any

from ast_lightning.config.parts import is_part

LARGEST, LARGEST_WHOLE = 1e30, 10**12
LIMITS = f"0, or absolute values from {1 / LARGEST:g} to {LARGEST:g}; whole numbers up to {float(LARGEST_WHOLE):g}"
"""The limits of every number: beyond them, float32 or int64 may overflow, or underflow to 0."""

_WORDS = {"bool": ("true", "false"), "part": ("{_target_: package.module.name}",), "None": ("null",)}
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


def follows(field: Field[Any]) -> bool:
    """Whether an option may be null and is then computed from others.

    Its field in a dataclass is None only if the option has no effect with the others.
    """
    return field.default is None and field.metadata.get("neutral") is not None


@dataclass(frozen=True)
class Allowed:
    """The values of an option.

    Args:
        types: bool, int, float, str, ``list[…]`` and None, joined by ``|`` as in an annotation; ``part`` is a mapping
            with ``_target_``, or a callable. Types of items are joined by ``/``. Any other type allows all
            values.
        least, most: inclusive bounds of numbers.
        above, below: exclusive bounds of numbers.
        choices: the allowed texts; empty: any text.
    """

    types: str
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    choices: Sequence[str] = ()

    @classmethod
    def by(cls, field: Field[Any]) -> Allowed:
        """The allowed values of a field of a settings dataclass."""
        annotation = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        types = field.metadata.get("type") or annotation
        types += " | None" if follows(field) and "None" not in types else ""
        return cls(types, **field.metadata.get("allowed", {}))

    @property
    def item(self) -> Allowed | None:
        """The allowed values of the items of a list; None if no list is allowed."""
        items = re.search(r"list\[([\w/]+)\]", self.types)
        return replace(self, types=items[1].replace("/", " | ")) if items else None

    def holds(self, value: object) -> bool:
        """Whether an option may have this value."""
        return any(self._holds(kind, value) for kind in self.types.split(" | "))

    def bounds(self, number: Any) -> bool:
        """Whether a number lies within the bounds."""
        return bool(self.least <= number <= self.most and self.above < number < self.below)

    def is_usual(self, number: Any) -> bool:
        """Whether a number is within ``LIMITS``."""
        largest = LARGEST if "float" in self.types else LARGEST_WHOLE
        return bool(number == 0 or 1 / LARGEST <= abs(number) <= largest)

    def _holds(self, kind: str, value: Any) -> bool:
        if kind == "None":
            return value is None
        if kind == "bool":
            return isinstance(value, bool)
        if kind == "part":
            return is_part(value)
        if kind == "str":
            if not isinstance(value, str) or _NOT_TEXT.search(value):
                return False
            return value in self.choices if self.choices else bool(value.strip())
        if kind in ("int", "float"):
            number = isinstance(value, Integral if kind == "int" else Real) and not isinstance(value, bool)
            return number and self.bounds(value) and self.is_usual(value)
        if self.item and kind.startswith("list"):
            return isinstance(value, list | tuple) and all(map(self.item.holds, value))
        return True

    def __str__(self) -> str:
        """A description in English: ``a whole number of at least 1, auto or null``."""
        kinds = sorted(self.types.split(" | "), key=lambda kind: kind.startswith("list"))  # the longest text last
        words = [word for kind in kinds for word in self._words(kind)]
        return " or ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])

    def _words(self, kind: str) -> Sequence[str]:
        if kind in ("int", "float"):
            return [("a whole number" if kind == "int" else "a finite number") + self._bounds()]
        if kind == "str":
            return self.choices or ["printable text"]
        if self.item and kind.startswith("list"):
            return [f"a list, each item {self.item}"]
        return _WORDS.get(kind, ["any value"])

    def _bounds(self) -> str:
        if math.isfinite(self.least + self.most):
            return f" from {self.least} to {self.most}"
        named = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and".join(f" {word} {bound}" for word, bound in named.items() if math.isfinite(bound))
