"""A composed configuration, checked by name, type and value before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

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
    names = [str(name) for name in config if name != "hydra"]
    root = _resolved(config, [name for name in names if name not in (*SECTIONS, *FREE_SECTIONS)])
    _check_groups(root)
    result: Config = asdict(settings_from(RootSettings, root))
    plain = _resolved(config, names)
    for section in SECTIONS:
        result[section] = _checked_section(section, plain)
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
    section = kind.section
    node = OmegaConf.structured(kind)
    OmegaConf.set_readonly(node, False)
    types = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in types]
    if unknown:
        raise unknown_option(f"{section}.{unknown[0]}".lstrip("."), values[unknown[0]])
    for name, value in values.items():
        option = f"{section}.{name}" if section else name
        try:
            node[name] = value
        except OmegaConfBaseException as error:
            raise wrong_type(option, value, types[name]) from error
    whole = OmegaConf.create({**(context or {}), section or "root": node})
    content: Any = OmegaConf.to_container(whole[section or "root"], resolve=True)
    return kind(**content)


def is_option(name: str) -> bool:
    """Whether there is an option of this full name, such as ``distill.ipc``."""
    return name in known_options()


def unknown_option(option: str, value: object) -> ConfigurationError:
    """The error for an option that does not exist; it recommends the nearest that does."""
    section, _, name = option.partition(".")
    if section == "trainer":  # an argument of Lightning's Trainer may have a successor
        try:
            check_arguments({name: value})
        except ConfigurationError as error:
            return error
    if is_option(option):
        remedy = f"leave it out, or choose another {section}"
        return ConfigurationError(option, value, f"the chosen {section} has no such option", remedy)
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
    """The existing option whose name is most like ``option``, if one is; without a section, all of the same name."""
    known = known_options()
    section, _, name = option.rpartition(".")
    same = [each for each in known if each.endswith(f".{name}")]
    if not section and same:
        return " or ".join(same)
    groups = {} if section else {group: group for group in (*SECTIONS, *GLOBAL_GROUPS)}
    own = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == section}
    everywhere = {each.rpartition(".")[2]: each for each in known}
    for names in (own, {name: each for name, each in everywhere.items() if each.startswith(section)}, everywhere):
        found = difflib.get_close_matches(name, {**names, **groups}, 1, 0.7)
        if found:
            return {**names, **groups}[found[0]]
    return None


def _resolved(config: DictConfig, names: Sequence[str]) -> Config:
    try:
        own = OmegaConf.masked_copy(config, list(names))
        plain: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "configuration")
        problem = str(error).splitlines()[0].rstrip(".")
        value, remedy = "???", f"give it on the command line: {key}=…"
        if isinstance(error, InterpolationResolutionError):
            value, remedy = "${…}", "correct the name in braces"
        raise ConfigurationError(key, value, problem, remedy) from error
    return dict(plain)


def _check_groups(root: Config) -> None:
    for group in GLOBAL_GROUPS:
        if root.pop(group, None) is not None:
            raise ConfigurationError(
                group,
                "…",
                f"the chosen file sets options below {group} instead of at the top level",
                f"write '# @package _global_' as the first line of the file in conf/{group}/",
            )


def _checked_section(section: str, plain: Config) -> Config:
    values = plain.get(section)
    if not isinstance(values, Mapping):
        shown, remedy = "null" if values is None else values, f"choose one of the files in conf/{section}/"
        raise ConfigurationError(section, shown, "the section is missing", remedy)
    kind = kind_of(section, values)
    if section == "trainer":
        return _checked_trainer(dict(values))
    if kind is not None:
        return asdict(settings_from(kind, values, plain))  # type: ignore[call-overload]
    if not values.get("_target_"):
        remedy = f"give a class as package.module.Name, or choose another of the files in conf/{section}/"
        raise ConfigurationError(f"{section}._target_", "null", "it must name a class", remedy)
    if section == "distill":
        names = [each.name for each in fields(DistillSettings)]
        common = {name: value for name, value in values.items() if name in names}
        return {**values, **asdict(settings_from(DistillSettings, common))}
    return dict(values)


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
