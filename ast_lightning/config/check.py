"""A composed configuration, checked by name, type and value before torch is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ast_lightning.config.derived import derived_options
from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.root import RootSettings
from ast_lightning.config.schema import FREE_SECTIONS, GLOBAL_GROUPS, SECTIONS, kind_of, known_options
from ast_lightning.config.settings import Settings, schema_of, type_of
from ast_lightning.config.trainer import OTHER_ARGUMENTS, rejected_argument
from ast_lightning.errors import ConfigurationError

Config = dict[str, Any]
Kind = TypeVar("Kind", bound=Settings)

_FOLDERS = ["output_dir", "buffers", "experts_dir", "synthetic"]  # data read data.root
LIST_OPTIONS = "python -m ast_lightning.config lists all options"
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


def checked(config: DictConfig) -> Config:
    """The configuration as plain containers: interpolations and ~ resolved, numbers in the type of their option.

    Options of classes that are not of this package are passed on unchecked.

    Raises:
        ConfigurationError: naming an option that is missing, unknown, of another type, or that cannot work.
    """
    names = [str(name) for name in config if name != "hydra"]
    root = _resolved(config, [name for name in names if name not in (*SECTIONS, *FREE_SECTIONS)])
    for group in GLOBAL_GROUPS:
        if root.pop(group, None) is not None:
            problem = f"the chosen file sets options below {group} instead of at the top level"
            remedy = f"write '# @package _global_' as the first line of the file in conf/{group}/"
            raise ConfigurationError(group, "…", problem, remedy)
    result: Config = asdict(settings_from(RootSettings, root))  # first, as sections refer to these options
    plain = _resolved(config, names)
    result |= {section: _checked_section(section, plain) for section in SECTIONS}
    result["derived"] = derived = derived_options(result, plain)
    for option, value in derived.items():  # and what the sections check of several options at once
        section, _, name = option.partition(".")
        plain[section] = {**plain[section], name: value}
    result |= {section: _checked_section(section, plain) for section in {each.partition(".")[0] for each in derived}}
    for options, names in ((result, _FOLDERS), (result["distill"], ["warm_start"])):
        options.update({name: os.path.expanduser(options[name]) for name in names if options.get(name)})
    return result | {section: plain[section] for section in FREE_SECTIONS if section in plain}


def settings_from(kind: type[Kind], values: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Kind:
    """A settings dataclass from the values of its section.

    Args:
        kind: the dataclass.
        values: by the name of the option; a missing one has its default.
        context: the whole configuration, where a default is an interpolation.

    Raises:
        ConfigurationError: an option that the dataclass does not have, a value of another type, or one that cannot
            work.
    """
    node = schema_of(kind)
    types = {each.name: type_of(each) for each in fields(kind)}
    for name, value in values.items():
        option = f"{kind.section}.{name}".lstrip(".")
        if name not in types:
            raise unknown_option(option, value)
        try:
            node[name] = value
        except OmegaConfBaseException as error:
            raise wrong_type(option, value, types[name]) from error
    whole = OmegaConf.create({**(context or {}), "own": node})
    content: Any = OmegaConf.to_container(whole.own, resolve=True)
    return kind(**content)


def unknown_option(option: str, value: object) -> ConfigurationError:
    """The error for an option that does not exist; it recommends the nearest that does."""
    section, _, name = option.partition(".")
    if section == "trainer" and (error := rejected_argument(name, value)):
        return error
    if option in known_options():
        remedy = f"leave it out, or choose another {section}"
        return ConfigurationError(option, value, f"the chosen {section} has no such option", remedy)
    near = nearest(option)
    return ConfigurationError(
        option, value, "there is no such option", f"did you mean {near}? {LIST_OPTIONS}" if near else LIST_OPTIONS
    )


def wrong_type(option: str, value: object, annotation: str) -> ConfigurationError:
    """The error for a value that does not have the type of its option."""
    parts = [part.strip() for part in annotation.split("|")]
    wanted = " or ".join("a list" if part.startswith("list") else _TYPES.get(part, part) for part in parts)
    field = known_options().get(option)
    meaning = f": {field.metadata['help']}" if field is not None else ""
    shown = "null" if value is None else value
    return ConfigurationError(option, shown, f"it must be {wanted}", f"give {wanted}{meaning}")


def nearest(option: str) -> str | None:
    """The existing option whose name is most like ``option``, if one is; without a section, all of the same name."""
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
    try:
        own = OmegaConf.masked_copy(config, names)
        plain: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        value, remedy = "???", f"give it on the command line: {key}=…"
        if isinstance(error, InterpolationResolutionError):
            value, remedy = "${…}", "correct the name in braces"
        raise ConfigurationError(key, value, str(error).splitlines()[0].rstrip("."), remedy) from error
    return dict(plain)


def _checked_section(section: str, plain: Config) -> Config:
    values = plain.get(section)
    if not isinstance(values, Mapping):
        shown, remedy = "null" if values is None else values, f"choose one of the files in conf/{section}/"
        raise ConfigurationError(section, shown, "the section is missing", remedy)
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
