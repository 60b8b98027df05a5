"""Errors of Hydra and OmegaConf, which concern how options are merged, as errors that name an option and a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ast_lightning.config.check import LIST_OPTIONS, is_option, unknown_option, wrong_type
from ast_lightning.config.schema import GLOBAL_GROUPS, SECTIONS
from ast_lightning.errors import ConfigurationError

_NO_CHOICE = "Config group override must be a string or a list"  # a ValueError of Hydra, for group=null or a number
_OVERRIDE = re.compile(r"Could not (?:override|delete from config\.) ?'([^']+)'|Error merging override ([^=]+)")


def is_rejection(error: Exception) -> bool:
    """Whether an exception is one with which Hydra rejects overrides or files."""
    return isinstance(error, HydraException | OmegaConfBaseException) or str(error).startswith(_NO_CHOICE)


def rejection(error: Exception, overrides: Sequence[str]) -> ConfigurationError:
    """What is wrong, by the name of an option: Hydra's own advice, to add ``+option``, is of no use here.

    Args:
        error: an exception of Hydra or OmegaConf, raised while a configuration was composed.
        overrides: of the command line.
    """
    given = {_key(word): word.partition("=")[2] for word in overrides if not word.startswith("-")}
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = ", ".join(sorted(each for each in error.options if not each.startswith(("base", "common"))))
        return ConfigurationError(group, choice, "there is no such choice", f"choose one of {choices}")
    if message.startswith(_NO_CHOICE):
        group = next(name for name in given if name in SECTIONS or name in GLOBAL_GROUPS)
        remedy = f"choose one of the files in conf/{group}/"
        return ConfigurationError(group, given[group], "there is no such choice", remedy)
    if isinstance(error, OverrideParseException):
        option, _, value = error.override.partition("=")
        problem = f"it cannot be parsed ({_first_line(message)})"
        return ConfigurationError(option, value, problem, "quote the whole override and its text: 'name=\"text\"'")
    if listed := re.search(r"(?:value for argument|Sweep parameters) '([^=']+)=(.*)'", message):
        problem, remedy = "it has several values", "add -m to run each of them, or write a list as [a,b]"
        return ConfigurationError(listed[1], listed[2], problem, remedy)
    if merged := _OVERRIDE.match(message):
        option = _key(merged[1] or merged[2])
        value = given.get(option) or "…"
        return wrong_type(option, value) if merged[2] and is_option(option) else unknown_option(option, value)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__context__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _in_file(cause, message)
    return ConfigurationError("overrides", " ".join(overrides), _first_line(message), LIST_OPTIONS)


def _in_file(cause: OmegaConfBaseException, message: str) -> ConfigurationError:
    """The error for the option of a file at which OmegaConf stopped."""
    option = str(cause.full_key)
    found = re.search(r"Value '(.*?)' of type", str(cause))
    value = found[1] if found else "…"
    known = is_option(option) and not isinstance(cause, ConfigAttributeError | ConfigKeyError)
    error = wrong_type(option, value) if known else unknown_option(option, value)
    file = re.match(r"In '([^']+)'", message)
    problem = f"{error.problem} (in {file[1]}.yaml)" if file else error.problem
    return ConfigurationError(option, value, problem, error.remedy)


def _key(word: str) -> str:
    """The option that an override sets."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "they do not compose")
