"""Errors of Hydra and OmegaConf, which concern how options are merged, as errors that name an option and a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from ast_lightning.config.check import LIST_OPTIONS, unknown_option, wrong_type
from ast_lightning.config.schema import FREE_SECTIONS, GLOBAL_GROUPS, SECTIONS, known_options
from ast_lightning.config.settings import type_of
from ast_lightning.errors import ConfigurationError

_NO_CHOICE = "Config group override must be a string or a list"  # a ValueError of Hydra, for group=null or a number


def is_rejection(error: Exception) -> bool:
    """Whether an exception is one with which Hydra rejects overrides or files."""
    kinds = HydraException | OmegaConfBaseException | YAMLError
    return isinstance(error, kinds) or str(error).startswith(_NO_CHOICE)


def rejection(error: Exception, overrides: Sequence[str]) -> ConfigurationError:
    """What is wrong, by the name of an option; Hydra's own advice is to add the unknown option.

    Args:
        error: an exception of Hydra or OmegaConf, raised while a configuration was composed.
        overrides: of the command line.
    """
    pairs = [word.partition("=")[::2] for word in overrides if not word.startswith("-")]
    given = {key.lstrip("+~").partition("@")[0]: value for key, value in pairs}
    message, cause = str(error), error.__cause__ or error.__context__
    summary = message.strip().partition("\n")[0].rstrip(".")
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = ", ".join(sorted(each for each in error.options if not each.startswith(("base", "common"))))
        install = "pip install '.[sweep]', or " if group.startswith("hydra/") else ""  # launchers and sweepers
        return ConfigurationError(group, choice, "there is no such choice", f"{install}choose one of {choices}")
    if message.startswith(_NO_CHOICE):
        groups = [name for name in given if name in (*SECTIONS, *FREE_SECTIONS, *GLOBAL_GROUPS)]
        group = next(name for name in groups if given[name] == "null" or not given[name].isidentifier())
        remedy = f"choose one of the files in conf/{group}/"
        return ConfigurationError(group, given[group], "there is no such choice", remedy)
    if isinstance(error, OverrideParseException):
        option, _, value = error.override.partition("=")
        remedy = "quote the whole override and its text: 'name=\"text\"'"
        return ConfigurationError(option, value, f"it cannot be parsed ({summary})", remedy)
    if isinstance(error, YAMLError):
        problem = " ".join(message.split())
        return ConfigurationError("configuration file", "…", f"it is not valid YAML ({problem})", "correct the file")
    if there := re.search(r"An item is already at '([^']+)'", message):
        remedy = f"leave out the +: {there[1]}={given.get(there[1], '…')}"
        return ConfigurationError(there[1], given.get(there[1], "…"), "there is such an option already", remedy)
    file = re.match(r"In '([^']+)'", message)
    key = str(getattr(cause, "full_key", None) or "overrides")
    option = key if file else max((each for each in given if each in message), key=len, default=key)
    value = given.get(option) or "…"
    if message.startswith(("Ambiguous value", "Sweep parameters")):
        remedy = "add -m to run each of them, or write a list as [a,b]"
        return ConfigurationError(option, value, "it has several values", remedy)
    if "does not support deletion" in str(cause) or (
        message.startswith("Could not delete") and option in known_options()
    ):
        remedy = f"leave out ~{option}; to change it, give a value: {option}=…"
        return ConfigurationError(f"~{option}", "…", "an option cannot be removed", remedy)
    if isinstance(cause, ValidationError) and option in known_options():
        found = wrong_type(option, value, type_of(known_options()[option]))
    elif isinstance(cause, OmegaConfBaseException) or message.startswith("Could not delete"):
        found = unknown_option(option, value)
    else:
        return ConfigurationError(option, value, summary, LIST_OPTIONS)
    if not file:
        return found
    remedy = f"correct {file[1]}.yaml, or choose another file: the command line cannot remove what a file sets"
    return ConfigurationError(option, found.value, f"{found.problem} (in {file[1]}.yaml)", remedy)
