"""Convert errors of Hydra and OmegaConf, raised when options are merged, to errors with an option and a remedy.

Their deprecation warnings are hidden here as well.
"""

from __future__ import annotations

import difflib
import re
import shlex
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from ast_lightning.config.check import LIST_OPTIONS, cannot_be_removed, no_section, unknown_option
from ast_lightning.config.schema import FREE_SECTIONS, GLOBAL_GROUPS, SECTIONS, known_options
from ast_lightning.config.settings import wrong_value
from ast_lightning.errors import ConfigurationError

_NO_CHOICE = "Config group override must be a string or a list"  # a ValueError of Hydra, for group=null or a number

_LONG = 400  # characters of a list that a message can hold

_OF_VALUES = ValidationError | ConfigTypeError | OverflowError  # raised for a wrong type; the last: for 10**400


_DEPRECATED = ("version_base", "_execution_whitelist_", r"register_new_resolver\(\)")
"""What Hydra 1.4 and OmegaConf 2.4 warn about, and 1.3 and 2.3 need. Configurations are the user's own: trusted."""


def hide_deprecations() -> None:
    """Hide these warnings from now on, or until the end of the surrounding ``warnings.catch_warnings``."""
    for name in _DEPRECATED:
        warnings.filterwarnings("ignore", message=f"(?s).*{name}", category=UserWarning)


def choices_of_groups() -> str:
    """The groups and their choices, for ``--help``: one paragraph each."""
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    found = {group: _folded(_listed(loader.get_group_options(group))) for group in sorted(groups)}
    return "\n".join(textwrap.fill(f"{group}: {names}", 118, subsequent_indent="  ") for group, names in found.items())


def choices_of(group: str) -> list[str]:
    """The files of a configuration group that can be chosen, in the search path of the initialised Hydra."""
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(each for each in options if not _is_base(each))


def check_choices(choices: Mapping[str, object]) -> None:
    """Reject a file that others extend, chosen as if it were complete.

    Args:
        choices: the chosen file of each configuration group.

    Raises:
        ConfigurationError: naming the group.
    """
    for group, choice in choices.items():
        if not group.startswith("hydra/") and _is_base(str(choice)):
            options = GlobalHydra.instance().config_loader().get_group_options(group)
            problem = "other files extend it, and it is not complete"
            raise ConfigurationError(group, choice, problem, _other_choice(str(choice), options))


def _is_base(choice: str) -> bool:
    return choice in ("common", "trajectory_matching") or choice.startswith("base")


def _listed(options: Iterable[str]) -> str:
    return ", ".join(sorted(each for each in options if not _is_base(each)))


def _folded(names: str) -> str:
    """Names that differ only in the images per class as one, and of these, those that differ only in the data.

    >>> _folded("digits, mtt_a_ipc1, mtt_a_ipc10, mtt_b_ipc1, mtt_b_ipc10, mtt_c_ipc1")
    'digits, mtt_{a,b}_ipc{1,10}, mtt_c_ipc1'
    """
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in names.split(", "):
        match = re.fullmatch(r"([^_]+)_(\w+)_ipc(\d+)", name)
        method, data, number = match.groups() if match else (name, "", "")
        numbers.setdefault((method, data), []).append(number)
    found: dict[tuple[str, str], list[str]] = {}
    for (method, data), each in numbers.items():
        found.setdefault((method, _braced(sorted(each, key=lambda number: (len(number), number)))), []).append(data)
    return ", ".join(
        f"{method}_{_braced(data)}_ipc{number}" if number else method for (method, number), data in found.items()
    )


def _braced(words: Sequence[str]) -> str:
    return f"{{{','.join(words)}}}" if len(words) > 1 else words[0]


def _other_choice(choice: str, options: Iterable[str]) -> str:
    names = _listed(options)
    if len(names) <= _LONG:
        return f"choose one of {names}"
    near = difflib.get_close_matches(choice, names.split(", "), 1)
    return f"did you mean {near[0]}? --help lists all" if near else "choose one of those that --help lists"


def is_rejection(error: Exception) -> bool:
    """Whether an exception means that Hydra rejects overrides or configuration files."""
    kinds, trace = HydraException | OmegaConfBaseException | YAMLError, error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    by_omegaconf = trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("omegaconf")
    return isinstance(error, kinds) or by_omegaconf or str(error).startswith(_NO_CHOICE)


def rejection(error: Exception, overrides: Sequence[str]) -> ConfigurationError:
    """The error that names the option; Hydra's own message advises the user to add an unknown option.

    Args:
        error: an exception of Hydra or OmegaConf, raised while a configuration was composed.
        overrides: the overrides on the command line.
    """
    pairs = [word.partition("=")[::2] for word in overrides if not word.startswith("-")]
    given = {key.lstrip("+~").partition("@")[0]: value for key, value in pairs}
    message, cause = str(error), error.__cause__ or error.__context__
    summary = message.strip().partition("\n")[0].rstrip(".")
    for section in SECTIONS:
        if f"~{section}" in overrides:
            return no_section(section, "null")
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        install = "pip install '.[sweep]', or " if group.startswith("hydra/") else ""  # launchers and sweepers
        remedy = f"{install}{_other_choice(choice, error.options)}"
        return ConfigurationError(group, choice, "there is no such choice", remedy)
    if match := re.search(r"[Cc]onfig directory '([^']+)' not found", message):
        return ConfigurationError("--config-dir", match[1], "there is no such folder", "name a folder of YAML files")
    if match := re.search(r"primary config '([^']+)'|^Primary config directory not found", message):
        remedy = "leave it out; experiment=NAME chooses a file of --config-dir"
        name = match[1] or "…"
        return ConfigurationError("--config-path, --config-name", name, "there is no such configuration", remedy)
    if message.startswith(_NO_CHOICE):
        groups = [name for name in given if name in (*SECTIONS, *FREE_SECTIONS, *GLOBAL_GROUPS)]
        group = next((name for name in groups if given[name] == "null" or not given[name].isidentifier()), "")
        remedy = f"choose one of the files in conf/{group}/" if group else "write option=value"
        return ConfigurationError(group, given.get(group, ""), "there is no such choice", remedy)
    if isinstance(error, OverrideParseException):
        option, equals, value = error.override.partition("=")
        if not equals:
            return ConfigurationError(option, "", "the value is missing", f"write {option}=…")
        remedy = "correct its brackets and quotes, or quote it as text: "
        remedy = "quote it: " if value[:1] not in "[{$\"'" else remedy
        quoted = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
        remedy += shlex.quote(f'{option}="{quoted}"')
        return ConfigurationError(option, value, "it cannot be parsed as it stands", remedy)
    if isinstance(error, YAMLError):
        problem = " ".join(message.split())
        return ConfigurationError("configuration file", "…", f"it is not valid YAML ({problem})", "correct the file")
    if there := re.search(r"An item is already at '([^']+)'", message):
        remedy = f"leave out the +: {there[1]}={given.get(there[1], '…')}"
        return ConfigurationError(there[1], given.get(there[1], "…"), "there is such an option already", remedy)
    file = re.match(r"In '([^']+)'", message)
    key = str(getattr(cause, "full_key", None) or "overrides")
    named = [each for each in given if each in message or any(each.startswith(f"{name}.") for name in known_options())]
    option = key if file else max(named, key=len, default=key)
    value = given.get(option) or "…"
    if message.startswith(("Ambiguous value", "Sweep parameters")):
        remedy = "to run each of them, add -m to the command; a list is written as [a,b]"
        return ConfigurationError(option, value, "it has several values", remedy)
    if message.startswith("Multiple values for") and any(word.startswith(f"+{option}") for word in overrides):
        return ConfigurationError(option, value, "it has a value already", f"leave out the +: {option}={value}")
    removed = "does not support deletion" in str(cause) or message.startswith("Could not delete")
    if removed and option in known_options():
        return cannot_be_removed(option)
    if isinstance(cause, _OF_VALUES) and option in known_options():
        found = wrong_value(option, value, known_options()[option])
    elif isinstance(cause, OmegaConfBaseException) or removed or type(error) in (TypeError, ValueError):
        added = not message.startswith("Could not override")
        found = unknown_option(option, value, None if added else getattr(cause, "parent_node", None))
    else:
        return ConfigurationError(option, value, summary, LIST_OPTIONS)
    if not file:
        return found
    remedy = f"correct {file[1]}.yaml, or choose another file: the command line cannot remove what a file sets"
    return ConfigurationError(option, found.value, f"{found.problem} (in {file[1]}.yaml)", remedy)
