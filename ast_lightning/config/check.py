"""A composed configuration, checked by name, type and value before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ast_lightning.config.distill import DistillSettings
from ast_lightning.config.root import RootSettings
from ast_lightning.config.schema import FREE_SECTIONS, GLOBAL_GROUPS, SECTIONS, kind_of, known_options
from ast_lightning.config.settings import Settings
from ast_lightning.config.trainer import OTHER_ARGUMENTS, SHORT_PRECISIONS, check_arguments
from ast_lightning.errors import ConfigurationError

Config = dict[str, Any]
Kind = TypeVar("Kind", bound=Settings)

LIST_OPTIONS = "python -m ast_lightning.config lists all options"
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


def checked(config: DictConfig) -> Config:
    """The configuration as plain containers: interpolations resolved, numbers in the type of their option.

    Options of classes that are not of this package are only known to those classes: they are passed on as they are.

    Raises:
        ConfigurationError: naming an option that is missing, unknown, of another type, or that cannot work.
    """
    plain = _resolved(config)
    _check_sections(plain)
    root = {name: value for name, value in plain.items() if name not in (*SECTIONS, *FREE_SECTIONS)}
    result: Config = {name: value for name, value in plain.items() if name not in root}
    for section in SECTIONS:
        result[section] = _checked_section(section, plain)
    return {**result, **asdict(settings_from(RootSettings, root))}  # type: ignore[call-overload]


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
    section = kind.section
    node = OmegaConf.structured(kind)
    OmegaConf.set_readonly(node, False)
    types = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        option = f"{section}.{name}" if section else name
        if name not in types:
            raise unknown_option(option, value)
        try:
            node[name] = value
        except OmegaConfBaseException as error:
            raise wrong_type(option, value, types[name]) from error
    whole = OmegaConf.create({**(context or {}), section or "root": node})
    content: Any = OmegaConf.to_container(whole[section or "root"], resolve=True)
    return kind(**content)


def unknown_option(option: str, value: object) -> ConfigurationError:
    """The error for an option that does not exist; it recommends the nearest that does."""
    near = nearest(option)
    remedy = f"did you mean {near}? {LIST_OPTIONS}" if near else LIST_OPTIONS
    return ConfigurationError(option, value, "there is no such option", remedy)


def wrong_type(option: str, value: object, annotation: str | None = None) -> ConfigurationError:
    """The error for a value that does not have the type of its option."""
    field = known_options().get(option)
    annotation = annotation or (str(field.type) if field is not None else "Any")
    about = f": {field.metadata['help']}" if field is not None else ""
    wanted = " or ".join(_describe_type(part.strip()) for part in annotation.split("|"))
    shown = "null" if value is None else value
    example = " such as baselines=[random,representative,whole]" if option == "baselines" else ""
    return ConfigurationError(option, shown, f"it must be {wanted}", f"give {wanted}{example}{about}")


def nearest(option: str) -> str | None:
    """The existing option whose name is most like ``option``, if one is."""
    known = list(known_options())
    section, _, name = option.rpartition(".")
    same = [each for each in known if each.rpartition(".")[2] == name]
    if same:  # the right name in another section, or in none
        return next((each for each in same if each.startswith(section)), same[0])
    own = [each for each in known if section and each.startswith(f"{section}.")]
    for names, cutoff in ((own, 0.75), (known, 0.7)):
        found = difflib.get_close_matches(option, names, 1, cutoff)
        if found:
            return found[0]
    by_name = {each.rpartition(".")[2]: each for each in known}
    found = difflib.get_close_matches(name, by_name, 1, 0.7)
    return by_name[found[0]] if found else None


def _resolved(config: DictConfig) -> Config:
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "configuration")
        problem = str(error).splitlines()[0].rstrip(".")
        raise ConfigurationError(key, "???", problem, f"give it on the command line: {key}=…") from error
    return dict(plain)


def _check_sections(plain: Config) -> None:
    for group in GLOBAL_GROUPS:
        if plain.get(group) is not None:
            raise ConfigurationError(
                group,
                "…",
                f"the chosen file sets options below {group} instead of at the top level",
                f"write '# @package _global_' as the first line of the file in conf/{group}/",
            )
        plain.pop(group, None)
    for section in SECTIONS:
        if not isinstance(plain.get(section), Mapping):
            value = "null" if plain.get(section) is None else plain[section]
            raise ConfigurationError(
                section, value, "the section is missing", f"choose one of the files in conf/{section}/"
            )


def _checked_section(section: str, plain: Config) -> Config:
    values: Config = dict(plain[section])
    kind = kind_of(section, values)
    if section == "trainer":
        return _checked_trainer(values)
    if kind is not None:
        return asdict(settings_from(kind, values, plain))  # type: ignore[call-overload, no-any-return]
    if not values.get("_target_"):
        remedy = f"give a class as package.module.Name, or choose another of the files in conf/{section}/"
        raise ConfigurationError(f"{section}._target_", "null", "it must name a class", remedy)
    if section == "distill":
        names = [each.name for each in fields(DistillSettings)]
        common = {name: value for name, value in values.items() if name in names}
        return {**values, **asdict(settings_from(DistillSettings, common))}
    return values


def _checked_trainer(values: Config) -> Config:
    others = {name: values.pop(name) for name in OTHER_ARGUMENTS if name in values}
    precision = values.get("precision")
    values["precision"] = SHORT_PRECISIONS.get(str(precision), precision)
    kind = kind_of("trainer", values)
    assert kind is not None
    result = asdict(settings_from(kind, values))  # type: ignore[call-overload]
    check_arguments(others)
    return {**result, **others}


def _describe_type(name: str) -> str:
    return "a list" if name.startswith("list") else _TYPES.get(name, name)
