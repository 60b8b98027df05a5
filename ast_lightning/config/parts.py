"""Parts that a user can replace: a name, a callable, or a mapping with ``_target_``, as a callable.

This module imports neither torch nor Hydra, so that a wrong value is rejected before either is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ast_lightning.errors import ConfigurationError

_TARGET, _PARTIAL = "_target_", "_partial_"


def check_part(value: Any, names: Collection[str], option: str) -> None:
    """Reject a value that is neither a known name, nor a mapping with ``_target_``, nor a callable.

    Args:
        value: of the option.
        names: of the built-in parts; none where there are none.
        option: as on the command line, e.g. ``expert.optimizer``.

    Raises:
        ConfigurationError: naming the option.
    """
    target = value.get(_TARGET) if isinstance(value, Mapping) else None
    if isinstance(target, str) or (value in names if isinstance(value, str) else callable(value)):
        return
    own = "{_target_: package.module.name}"
    remedy = f"choose one of {', '.join(names)}, or {own} for one of your own" if names else f"give {own}"
    raise ConfigurationError(option, "null" if value is None else value, "there is no such choice", remedy)


def resolve(value: Any, built_in: Mapping[str, Callable[..., Any]], option: str) -> Callable[..., Any]:
    """The callable that an option names.

    Args:
        value: a name of ``built_in``; a callable, which is returned as it is; or a mapping with ``_target_``. The
            other keys of a mapping are keyword arguments: they are bound to a function, and a class is instantiated
            with them. With ``_partial_: true`` they are bound to a class as well.
        built_in: the named parts.
        option: as on the command line, for error messages.

    Raises:
        ConfigurationError: there is no such name, the target cannot be imported, does not take these arguments, or
            gives nothing that can be called. Other exceptions of the target's own code are not caught.

    >>> resolve("floor", {"floor": int}, "test.rounding")(2.7)
    2
    >>> resolve({"_target_": "builtins.round", "ndigits": 1}, {}, "test.rounding")(2.74)
    2.7
    """
    check_part(value, built_in, option)
    if not isinstance(value, Mapping):
        return built_in[value] if isinstance(value, str) else value
    name = value[_TARGET]

    def wrong(problem: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"{option}.{_TARGET}", name, problem, remedy)

    arguments = {key: each for key, each in value.items() if key not in (_TARGET, _PARTIAL)}
    try:
        part = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise wrong(
            f"it cannot be imported ({error})", "give package.module.name, with its folder on PYTHONPATH"
        ) from error
    try:
        with contextlib.suppress(ValueError):  # written in C, without a signature
            now = inspect.isclass(part) and not value.get(_PARTIAL)
            (inspect.signature(part).bind if now else inspect.signature(part).bind_partial)(**arguments)
    except TypeError as error:
        remedy = f"correct the keys of {option}, or give a class _partial_: true"
        raise wrong(f"it cannot take these arguments: {error}", remedy) from error
    if inspect.isclass(part) and not value.get(_PARTIAL):
        part = part(**arguments)
    elif arguments:
        part = functools.partial(part, **arguments)
    if not callable(part):
        raise wrong(
            f"it gives {type(part).__name__}, which cannot be called", "name a function or a class with __call__"
        )
    return part


def describe_part(value: Any) -> Any:
    """The value of an option that holds parts as plain containers, for JSON: a callable becomes its dotted name."""
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
