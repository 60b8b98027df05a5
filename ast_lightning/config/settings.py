"""What the settings of all rooms have in common: values are checked where they are made, by the name users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ast_lightning.errors import ConfigurationError


class Settings:
    """Base of the settings dataclasses; ``section`` is the configuration section whose keys are their fields.

    The checks pass over None: a field that may be None says what that means.
    """

    section: ClassVar[str]

    def refused(self, name: str, problem: str, remedy: str) -> ConfigurationError:
        """The error that names the option and its value."""
        return ConfigurationError(f"{self.section}.{name}", getattr(self, name), problem, remedy)

    def require_at_least_one(self, *names: str) -> None:
        """Refuse counts below 1."""
        for name, value in self._given(names):
            if value < 1:
                raise self.refused(name, "it must be at least 1", "give a positive whole number")

    def require_positive(self, *names: str) -> None:
        """Refuse 0, negative numbers and NaN."""
        for name, value in self._given(names):
            if not value > 0:
                raise self.refused(name, "it must be positive", "give a number above 0")

    def require_not_negative(self, *names: str) -> None:
        """Refuse negative numbers and NaN."""
        for name, value in self._given(names):
            if not value >= 0:
                raise self.refused(name, "it must not be negative", "give 0 to turn it off")

    def require_momentum(self, *names: str) -> None:
        """Refuse what lies outside [0, 1)."""
        for name, value in self._given(names):
            if not 0 <= value < 1:
                raise self.refused(name, "it must lie in [0, 1)", "give 0 for no momentum")

    def require_choice(self, name: str, choices: Sequence[str]) -> None:
        """Refuse anything but one of ``choices``."""
        if getattr(self, name) not in choices:
            raise self.refused(name, "there is no such choice", f"take one of {', '.join(choices)}")

    def _given(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
