"""Check a composed configuration by name, type and value, before torch is imported."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ast_lightning.config.allowed import Allowed
from ast_lightning.config.derived import derived_options
from ast_lightning.config.distill import DistillSettings, check_canvases
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.config.root import RootSettings
from ast_lightning.config.schema import FREE_SECTIONS, GLOBAL_GROUPS, SECTIONS, kind_of, known_options
from ast_lightning.config.settings import Settings, schema_of, wrong_value
from ast_lightning.config.trainer import OTHER_ARGUMENTS, rejected_argument
from ast_lightning.errors import ConfigurationError

Config = dict[str, Any]
Kind = TypeVar("Kind", bound=Settings)

_FOLDERS = ["output_dir", "buffers", "experts_dir", "synthetic"]  # data.root is expanded when data are read
LIST_OPTIONS = "python -m ast_lightning.config lists all options"
_LAUNCHER = re.compile(
    "(WORLD_SIZE|MASTER_PORT|RANK|(LOCAL|NODE|GROUP)_RANK|(LOCAL|GROUP)_WORLD_SIZE|JSM_NAMESPACE_RANK"
    "|SLURM_(PROCID|LOCALID|NODEID|NTASKS|NNODES|NTASKS_PER_NODE))"
)


def checked(config: DictConfig) -> Config:
    """Check a configuration and return it as plain containers.

    Interpolations and ``~`` are resolved, and numbers are converted to the type of their option. Options of third-party
    classes are not checked.

    Raises:
        ConfigurationError: an option is missing, unknown, of the wrong type, or invalid; the message names it.
    """
    check_launcher(os.environ)
    _check_hydra(config)
    names = [str(name) for name in config if name != "hydra"]
    for each in fields(RootSettings):
        if each.name not in names:
            raise cannot_be_removed(each.name)
    for section in SECTIONS:
        if section not in names:
            raise no_section(section, "null")
    root = _resolved(config, [name for name in names if name not in (*SECTIONS, *FREE_SECTIONS)])
    for group in GLOBAL_GROUPS:
        if root.pop(group, None) is not None:
            problem = f"the chosen file sets options below {group} instead of at the top level"
            remedy = f"write '# @package _global_' as the first line of the file in conf/{group}/"
            raise ConfigurationError(group, "…", problem, remedy)
    result: Config = asdict(settings_from(RootSettings, root))  # first, as sections refer to these options
    plain = _resolved(config, names)
    plain["network"] = _without_convnet(plain["network"], config)
    sections = {section: checked_section(section, plain) for section in reversed(SECTIONS)}  # data refers to expert
    result |= {section: sections[section] for section in SECTIONS}
    result["derived"] = derived = derived_options(result, plain)
    for option, value in derived.items():  # again, for checks of several options at once
        section, _, name = option.partition(".")
        plain[section] = {**plain[section], name: value}
    result |= {section: checked_section(section, plain) for section in {each.partition(".")[0] for each in derived}}
    check_canvases(result["distill"]["canvas"], result["data"].get("preprocessing"))
    for options, names in ((result, _FOLDERS), (result["distill"], ["warm_start"])):
        options.update({name: os.path.expanduser(options[name]) for name in names if options.get(name)})
    return result | {section: plain[section] for section in FREE_SECTIONS if section in plain}


def settings_from(kind: type[Kind], values: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Kind:
    """Create a settings dataclass from the values of its section.

    Args:
        kind: the dataclass.
        values: values by option name; missing options get their defaults.
        context: the whole configuration, which is needed if a default is an interpolation.

    Raises:
        ConfigurationError: the dataclass does not have an option, or a value is of the wrong type or invalid.
    """
    node = schema_of(kind)
    known = {each.name: each for each in fields(kind)}
    for name, value in values.items():
        option = f"{kind.section}.{name}".lstrip(".")
        if name not in known:
            raise unknown_option(option, value)
        try:
            node[name] = value
        except (OmegaConfBaseException, OverflowError) as error:
            raise wrong_value(option, value, known[name]) from error
    content: Any = OmegaConf.to_container(node)  # given values are resolved: a remaining ${ is text
    if missing := [name for name in known if name not in values]:
        whole = OmegaConf.create({**(context or {}), "own": OmegaConf.masked_copy(node, missing)})
        content |= OmegaConf.to_container(whole.own, resolve=True)
    return kind(**content)


def _check_hydra(config: DictConfig) -> None:
    """Reject options of Hydra's own configuration that do not exist; Hydra itself would ignore them."""
    own = _hydra(config)
    known = ["env", *(each.name for each in fields(HydraConf))]
    for name in map(str, own):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean hydra.{near[0]}?" if near else "leave it out"
            raise ConfigurationError(f"hydra.{name}", own[name], "Hydra has no such option", remedy)


def _hydra(config: DictConfig) -> Any:
    whole: Any = config if "hydra" in config else HydraConfig.instance().cfg or {}
    return whole.get("hydra") or {}


def _without_convnet(network: Any, config: DictConfig) -> Any:
    """Leave out options of ConvNet, which experiments set, if another built-in network is chosen.

    Options on the command line are kept, and rejected later.
    """
    kind = kind_of("network", network) if isinstance(network, Mapping) else None
    if kind in (None, ConvNetSettings):
        return network
    of_others = {each.name for each in fields(ConvNetSettings)} - {each.name for each in fields(kind)}
    task = (_hydra(config).get("overrides") or {}).get("task") or ()
    given = [word.lstrip("+").partition("=")[0] for word in task]
    return {name: value for name, value in network.items() if name not in of_others or f"network.{name}" in given}


def unknown_option(option: str, value: object, chosen: Mapping[str, Any] | None = None) -> ConfigurationError:
    """The error for an option that does not exist; it suggests the existing option with the most similar name.

    Args:
        option: the name of the option, with its section.
        value: the given value.
        chosen: its section as composed, or None if the option was given with a ``+``, as arguments of the user's own
            classes are.
    """
    section, _, name = option.partition(".")
    if section == "trainer" and (error := rejected_argument(name, value)):
        return error
    if option in known_options():
        remedy = f"leave it out, or choose another {section}"
        return ConfigurationError(option, value, f"the chosen {section} has no such option", remedy)
    parent, _, key = option.rpartition(".")
    if parent in known_options() and "part" in Allowed.by(known_options()[parent]).types:
        inside = f"{key}: {value}" if key == "_target_" else f"_target_: …, {key}: {value}"
        remedy = f"give it within one mapping: '{parent}={{{inside}}}'"
        return ConfigurationError(option, value, f"{parent} is not a mapping yet", remedy)
    near = None if section in FREE_SECTIONS else nearest(option)
    remedy = f"did you mean {near}? {LIST_OPTIONS}" if near else LIST_OPTIONS
    kind = kind_of(section, chosen) if chosen is not None and section in SECTIONS else None
    if kind is not None and section == "network":
        own = [f"network.{each.name}" for each in fields(kind) if each.name != "_target_"]
        remedy = f"choose one of {', '.join(own)}" if own else "leave it out: the chosen network has no options"
    elif not near and chosen is not None and kind is None and section in (*FREE_SECTIONS, *SECTIONS):
        remedy = f"to pass it to a class of your own, add a +: +{option}={value}"
    return ConfigurationError(option, value, "there is no such option", remedy)


def cannot_be_removed(option: str) -> ConfigurationError:
    """The error for ``~option``."""
    remedy = f"leave out ~{option}; to change it, give a value: {option}=…"
    return ConfigurationError(f"~{option}", "…", "an option cannot be removed", remedy)


def check_launcher(environment: Mapping[str, str]) -> None:
    """Reject environment variables of launchers that are not whole numbers, before Lightning reads them.

    Raises:
        ConfigurationError: naming the environment variable.
    """
    for name, value in environment.items():
        if _LAUNCHER.fullmatch(name) and not re.fullmatch("[0-9]{1,9}", value):
            problem = "this environment variable must be a whole number; launchers such as torchrun set it"
            raise ConfigurationError(name, value, problem, f"unset {name}, or start the command by a launcher")


def nearest(option: str) -> str | None:
    """The existing option with the most similar name, or None; if no section is given, all options of that name."""
    section, _, name = option.rpartition(".")
    names = [*known_options(), *SECTIONS, *GLOBAL_GROUPS]
    same = [each for each in names if each.endswith(f".{name}")]
    if same and not section:
        return " or ".join(same)
    own = {each.rpartition(".")[2]: each for each in names if each.rpartition(".")[0] == section}
    for candidates in (own, {each.rpartition(".")[2]: each for each in names}):
        if found := difflib.get_close_matches(name, candidates, 1, 0.7):
            return candidates[found[0]]
    return None


def _resolved(config: DictConfig, names: list[str]) -> Config:
    plain: Config = {}
    try:
        for name in reversed(names):  # data refers to expert: report errors in expert first
            value = config[name]
            container = OmegaConf.is_config(value)
            plain[name] = OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if container else value
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        value, remedy = "???", f"give it on the command line: {key}=…"
        if isinstance(error, InterpolationResolutionError):
            value, remedy = "${…}", "correct the name in braces"
        raise ConfigurationError(key, value, str(error).splitlines()[0].rstrip("."), remedy) from error
    return {name: plain[name] for name in names}


def no_section(section: str, value: object) -> ConfigurationError:
    """The error for a section that is null, a single value, or removed."""
    return ConfigurationError(section, value, "the section is missing", f"choose one of the files in conf/{section}/")


def checked_section(section: str, plain: Config) -> Config:
    """Check one section of a configuration in plain containers, and add the defaults of options that it lacks.

    Raises:
        ConfigurationError: as :func:`checked`.
    """
    values = plain.get(section)
    if not isinstance(values, Mapping):
        raise no_section(section, "null" if values is None else values)
    own = kind_of(section, values)
    if own is None and not values.get("_target_"):
        remedy = f"give a class as package.module.Name, or choose another of the files in conf/{section}/"
        raise ConfigurationError(f"{section}._target_", "null", "it must name a class", remedy)
    kind = own or (DistillSettings if section == "distill" else None)
    if kind is None:
        return dict(values)
    names = {each.name for each in fields(kind)}
    passed_on = OTHER_ARGUMENTS if section == "trainer" else () if own else values
    others = {name: value for name, value in values.items() if name in passed_on and name not in names}
    for name, value in others.items():
        if section == "trainer" and value is not None and (error := rejected_argument(name, value)):
            raise error
    checked_here = {name: value for name, value in values.items() if name not in others}
    return {**others, **asdict(settings_from(kind, checked_here, plain))}
