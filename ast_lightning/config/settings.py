"""What the options of all sections share: a help text, a neutral value, and checks that name the option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from numbers import Real
from typing import Any, ClassVar, Optional, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ast_lightning.config.allowed import LIMITS, Allowed, follows
from ast_lightning.config.parts import find
from ast_lightning.errors import ConfigurationError

LARGEST_SEED = 2**32 - 1


def option(
    default: Any,
    help: str,
    *,
    type: str | None = None,
    choices: Sequence[str] = (),
    neutral: Any = MISSING,
    result: bool = True,
    **bounds: float,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the default value; a list or dict is copied. None with another ``neutral`` value means that the value
            is computed from other options (see :func:`~ast_lightning.config.allowed.follows`).
        help: what the option does, one sentence in plain English.
        type: a type that the annotation cannot express, such as ``bool | part`` (see
            :class:`~ast_lightning.config.allowed.Allowed`).
        choices: the allowed texts; empty: any text.
        neutral: the value at which the option is left out of a run's identity: with it, a run equals one from before
            the option existed. Defaults to ``default``. A default may change later; a neutral value must not.
        result: whether the option changes the results of a run; if not, it is not part of the run's identity.
        bounds: ``least`` and ``most``, ``above`` and ``below``, of a number or of each number of a list. Infinite
            numbers are never allowed.
    """
    metadata = {"help": help, "neutral": default if neutral is MISSING else neutral, "result": result, "type": type}
    metadata["allowed"] = {**bounds, "choices": tuple(choices)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def schema_of(kind: type[Settings]) -> DictConfig:
    """The OmegaConf schema of a settings dataclass, with the types and defaults of its options."""
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
    """The entries of ``values`` that change results and differ from the neutral value of their option.

    Args:
        kind: the settings dataclass; values of options that it lacks are kept. None: all values are kept.
        values: values by option name; numbers are compared by value, 100 equals 100.0.
    """
    known = {} if kind is None else {each.name: each for each in fields(kind)}
    result = {}
    for name, value in sorted(values.items()):
        if name not in known or (known[name].metadata.get("result", True) and not _is_neutral(known[name], value)):
            result[name] = comparable(value)
    return result


def comparable(value: Any) -> Any:
    """Convert all integers in plain containers to floats, so that 100 and 100.0 give the same JSON."""
    if isinstance(value, Mapping):
        return {str(key): comparable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_neutral(field: Field[Any], value: Any) -> bool:
    if value is None and follows(field):
        return True  # the option has no effect
    neutral, value = comparable(field.metadata.get("neutral", MISSING)), comparable(value)
    return type(neutral) is type(value) and bool(neutral == value)  # True == 1.0


@dataclass(frozen=True)
class Settings:
    """Base of the settings dataclasses; ``section`` is the configuration section whose keys are their fields, or empty.

    Every field is checked against the values that its :func:`option` allows. Subclasses check combinations of options
    in a ``__post_init__`` that calls this one first.

    Raises:
        ConfigurationError: an option has a value that is not allowed; the message names the first one.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        for each in fields(self):
            if not Allowed.by(each).holds(getattr(self, each.name)):
                raise wrong_value(f"{self.section}.{each.name}".lstrip("."), getattr(self, each.name), each)
        self.complete()

    def follow(self) -> dict[str, Any]:
        """The values of null options that depend on others of this section; options left out become neutral."""
        return {}

    def complete(self) -> None:
        """Replace None by a value in the options that are computed from others."""
        derived = self.follow()
        for each in fields(self):
            if follows(each) and getattr(self, each.name) is None:
                object.__setattr__(self, each.name, derived.get(each.name, each.metadata["neutral"]))

    def find_parts(self) -> None:
        """Import the parts that mappings with ``_target_`` name, and check their arguments.

        Raises:
            ConfigurationError: a part cannot be imported or does not accept its arguments; the message names the first.
        """
        for each in fields(self):
            value, option = getattr(self, each.name), f"{self.section}.{each.name}"
            if "part" in Allowed.by(each).types:
                parts = {f"{option}[{index}]": item for index, item in enumerate(value)} if type(value) is list else {}
                for name, part in (parts or {option: value}).items():
                    if isinstance(part, Mapping):
                        find(part, name)

    def refused(self, name: str, problem: str, remedy: str) -> ConfigurationError:
        """The error for the present value of an option; it names both."""
        value = getattr(self, name)
        option = f"{self.section}.{name}".lstrip(".")
        return ConfigurationError(option, "null" if value is None else value, problem, remedy)


def wrong_value(option: str, value: object, field: Field[Any]) -> ConfigurationError:
    """The error for a value that an option does not allow; for a list, it names the first wrong item."""
    allowed = Allowed.by(field)
    if (item := allowed.item) and isinstance(value, list | tuple):
        index, value = next(((index, each) for index, each in enumerate(value) if not item.holds(each)), (0, value))
        option, allowed = f"{option}[{index}]", item
    odd = isinstance(value, Real) and allowed.bounds(value) and not allowed.is_usual(value)
    limits = f" ({LIMITS})" if odd else ""
    shown = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
    remedy = f"give such a value ({field.metadata.get('help', option)})"
    return ConfigurationError(option, shown, f"it must be {allowed}{limits}", remedy)
