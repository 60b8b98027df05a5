"""The networks that option ``network`` names, and those of ``architectures``."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ast_lightning.commands.run import Run
from ast_lightning.config.check import checked_section
from ast_lightning.config.composition import choices_of
from ast_lightning.config.network import ConvNetSettings
from ast_lightning.config.parts import locate
from ast_lightning.config.schema import CONFIGURATION
from ast_lightning.errors import ConfigurationError
from ast_lightning.networks.libraries import LibraryNetwork

Config = dict[str, Any]


def network_factory(section: Mapping[str, Any]) -> Callable[..., Any]:
    """The class that ``network._target_`` names, with the other options of the section as arguments.

    Raises:
        ConfigurationError: it is not a class, does not have an argument, or a library has no network of that name.
    """
    arguments = {name: value for name, value in section.items() if name != "_target_"}
    kind = class_of("network", section["_target_"])
    accepted = inspect.signature(kind).parameters
    others = [name for name in arguments if name not in accepted]
    if others and not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in accepted.values()):
        near = difflib.get_close_matches(others[0], accepted, 1)
        remedy = (
            f"did you mean network.{near[0]}?" if near else "add " + " ".join(f"~network.{name}" for name in others)
        )
        if {each.name for each in fields(ConvNetSettings)} <= set(section):
            remedy = f"choose network=custom network._target_={section['_target_']}"
        problem = f"{section['_target_']} has no such argument"
        raise ConfigurationError(f"network.{others[0]}", arguments[others[0]], problem, remedy)
    if isinstance(kind, type) and issubclass(kind, LibraryNetwork):
        kind.check(**arguments)
    return functools.partial(kind, **arguments)


def class_of(section: str, target: object) -> Any:
    """Import the class that ``_target_`` of a section names.

    Raises:
        ConfigurationError: there is no such class.
    """
    found = locate(str(target), f"{section}._target_")
    if not isinstance(found, type):
        problem, remedy = f"it is a {type(found).__name__}, not a class", "give a class as package.module.Name"
        raise ConfigurationError(f"{section}._target_", target, problem, remedy)
    return found


def architectures(run: Run) -> dict[str, Run]:
    """A run for each entry of ``architectures``, by the name of its row: it differs from ``run`` in the network alone.

    A name is a file in conf/network/, composed by Hydra without overrides; that of the file of this run means its
    network with all overrides. A mapping gives a class and its arguments.

    Raises:
        ConfigurationError: there is no such file or class, it does not have an argument, or two entries have one name.
    """
    found: dict[str, Run] = {}
    for index, entry in enumerate(run.config["architectures"]):
        option = f"architectures[{index}]"
        try:
            label, choice, section = _architecture(entry, run)
            section = checked_section("network", {**run.config, "network": section})
            make_network = network_factory(section)
        except ConfigurationError as error:
            where = error.option.replace("network", option, 1)
            raise ConfigurationError(where, error.value, error.problem, error.remedy) from error
        if label in found:
            raise ConfigurationError(option, label, "an earlier entry has this name", "give each network once")
        config = {**run.config, "network": section, "synthetic": str(run.synthetic_folder())}
        choices = {**run.choices, "network": choice}
        found[label] = replace(run, config=config, make_network=make_network, choices=choices)
    return found


def _architecture(entry: str | Mapping[str, Any], run: Run) -> tuple[str, str, Config]:
    """The name of a row, the file in conf/network/, and the section of an entry of ``architectures``."""
    if isinstance(entry, Mapping):
        arguments = ", ".join(f"{name}={value}" for name, value in entry.items() if name != "_target_")
        kind = str(entry["_target_"]).rpartition(".")[2]
        return f"{kind}({arguments})" if arguments else kind, "custom", dict(entry)
    if entry == run.choices.get("network"):
        return entry, entry, run.config["network"]
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        names = choices_of("network")
        if entry not in names:
            near = difflib.get_close_matches(entry, names, 1)
            remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
            raise ConfigurationError("network", entry, "there is no such file in conf/network/", remedy)
        section = compose(f"network/{entry}").network
    whole = OmegaConf.create({**run.config, "network": section})  # which its interpolations may refer to
    if missing := sorted(name for name in section if OmegaConf.is_missing(section, name)):
        kind = "…" if "_target_" in missing else section["_target_"]
        others = "".join(f", {name}: …" for name in missing if name != "_target_")
        remedy = f"give a mapping instead: {{_target_: {kind}{others}}}"
        raise ConfigurationError("network", entry, f"it needs {missing[0]}", remedy)
    return entry, entry, OmegaConf.to_container(whole.network, resolve=True)  # type: ignore[return-value]
