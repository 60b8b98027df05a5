"""Parts that a user can replace: an option gives a name, a callable, or a mapping with ``_target_``.

This module imports neither torch nor Hydra, so that a wrong value is rejected before either is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ast_lightning.errors import ConfigurationError

_TARGET, _PARTIAL = "_target_", "_partial_"


def is_part(value: object) -> bool:
    """Whether a value is a mapping with ``_target_``, or a callable."""
    return callable(value) or (isinstance(value, Mapping) and isinstance(value.get(_TARGET), str))


def check_part(value: Any, names: Collection[str], option: str) -> None:
    """Reject a value that is neither a known name, nor a mapping with ``_target_``, nor a callable.

    Args:
        value: the value of the option.
        names: the names of the built-in parts; may be empty.
        option: as on the command line, e.g. ``expert.optimizer``.

    Raises:
        ConfigurationError: naming the option.
    """
    if is_part(value) or (isinstance(value, str) and value in names):
        return
    own = "{_target_: package.module.name}"
    remedy = f"choose one of {', '.join(names)}, or {own} for one of your own" if names else f"give {own}"
    raise ConfigurationError(option, "null" if value is None else value, "there is no such choice", remedy)


def resolve(value: Any, built_in: Mapping[str, Callable[..., Any]], option: str) -> Callable[..., Any]:
    """Return the callable that an option names.

    Args:
        value: a name of ``built_in``; a callable, which is returned as it is; or a mapping with ``_target_``. The
            other keys of a mapping are keyword arguments: they are bound to a function, and a class is instantiated
            with them. With ``_partial_: true`` they are bound to a class as well.
        built_in: the named parts.
        option: as on the command line, for error messages.

    Raises:
        ConfigurationError: the name does not exist, or the target cannot be imported, does not accept these arguments,
            or gives an object that is not callable. Other exceptions of the target's own code are not caught.

    >>> resolve("floor", {"floor": int}, "test.rounding")(2.7)
    2
    >>> resolve({"_target_": "builtins.round", "ndigits": 1}, {}, "test.rounding")(2.74)
    2.7
    """
    check_part(value, built_in, option)
    if not isinstance(value, Mapping):
        return built_in[value] if isinstance(value, str) else value
    found, arguments = find(value, option)
    part = found
    if inspect.isclass(found) and not value.get(_PARTIAL):
        part = found(**arguments)
    elif arguments:
        part = functools.partial(found, **arguments)
    if not callable(part):
        problem = f"it creates a {type(part).__name__}, which cannot be called"
        remedy = "name a function or a class with __call__"
        raise ConfigurationError(f"{option}.{_TARGET}", value[_TARGET], problem, remedy)
    return part


def find(value: Mapping[str, Any], option: str) -> tuple[Any, dict[str, Any]]:
    """Import the target of a mapping; return it with its keyword arguments, without calling it.

    Args:
        value: a mapping with ``_target_``.
        option: as on the command line, for error messages.

    Raises:
        ConfigurationError: the target cannot be imported, or does not accept these arguments.
    """
    part = locate(value[_TARGET], f"{option}.{_TARGET}")
    arguments = {str(key): each for key, each in value.items() if key not in (_TARGET, _PARTIAL)}
    try:
        with contextlib.suppress(ValueError):  # a function written in C may have no signature
            now = inspect.isclass(part) and not value.get(_PARTIAL)
            (inspect.signature(part).bind if now else inspect.signature(part).bind_partial)(**arguments)
    except TypeError as error:
        problem = f"it cannot take these arguments: {error}"
        remedy = f"correct the keys of {option}, or give a class _partial_: true"
        raise ConfigurationError(f"{option}.{_TARGET}", value[_TARGET], problem, remedy) from error
    return part, arguments


def locate(name: str, option: str) -> Any:
    """Import the object with a dotted name.

    Args:
        name: ``package.module.name``.
        option: the option that gives the name, as on the command line.

    Raises:
        ConfigurationError: there is no such module, or no such name in it; then the message suggests the most similar
            name. Other exceptions of a module's own code are not caught.

    >>> locate("math.sqrt", "test.part")(9)
    3.0
    """
    parts = name.split(".")
    problem, remedy = "it is not a dotted name", "give package.module.name"
    for end in range(len(parts), 0, -1) if all(map(str.isidentifier, parts)) else ():
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError as error:
            problem, remedy = f"it cannot be imported ({error})", "correct its name, or add its folder to PYTHONPATH"
            if end > 1 and isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                continue
            break
        for each in parts[end:]:
            if not hasattr(found, each):
                near = difflib.get_close_matches(each, dir(found), 1)
                problem = f"{getattr(found, '__file__', None) or found.__name__} has no {each}"
                remedy = f"did you mean {'.'.join(parts[:end])}.{near[0]}?" if near else "correct the name"
                raise ConfigurationError(option, name, problem, remedy)
            found, end = getattr(found, each), end + 1
        return found
    raise ConfigurationError(option, name, problem, remedy)


def describe_part(value: Any) -> Any:
    """Convert the value of an option to plain containers, for JSON: a callable becomes its dotted name."""
    if isinstance(value, Mapping):
        return {str(key): describe_part(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [describe_part(each) for each in value]
    if isinstance(value, functools.partial):
        return {**describe_part(value.keywords), _TARGET: describe_part(value.func)}
    if not callable(value):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
