"""Choose and name the classes of a dataset."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch

from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.inspection import count
from ast_lightning.terminal import say

Classes = int | Sequence[str | int] | None
"""The classes to use, in the order of their labels; or how many, the first of all; None: all."""


def choose(classes: Classes, known: Sequence[str], where: object) -> list[str]:
    """The chosen ones of ``known`` classes, in the order of their labels.

    Raises:
        ConfigurationError: a class does not exist, or is repeated.
    """
    if classes is None:
        return list(known)
    if isinstance(classes, int):
        if classes > len(known):
            problem = f"{where} has {count(len(known), 'class')}"
            raise ConfigurationError("data.classes", classes, problem, f"use at most {len(known)} or null")
        return list(known[:classes])
    names = [str(each) for each in classes]
    if len(names) < 2:
        raise ConfigurationError("data.classes", names, "at least two are needed", "name more classes, or null")
    if missing := [each for each in names if each not in known]:
        near = difflib.get_close_matches(missing[0], known, 1, 0.0)
        problem = f"{where} has no class {missing[0]!r}"
        raise ConfigurationError("data.classes", names, problem, f"use names such as {', '.join(near)}")
    if len({*names}) < len(names):
        raise ConfigurationError("data.classes", names, "a class is repeated", "name each class once")
    if shared := [each for each in names if known.count(each) > 1]:
        problem = f"{where} has {known.count(shared[0])} classes of the name {shared[0]!r}"
        raise ConfigurationError("data.classes", names, problem, "leave it out, or set data.classes to a number")
    return names


def choose_classes(raw: RawDataset, classes: Classes) -> RawDataset:
    """Keep the images of some classes, which get the labels 0, 1, … in this order.

    Raises:
        ConfigurationError: a class does not exist.
    """
    if classes is None:
        return raw
    names = choose(classes, raw.class_names, raw.name)
    if isinstance(classes, int):  # several classes may have one name
        return _with_labels(raw, list(range(classes)))
    return _with_labels(raw, [raw.class_names.index(name) for name in names])


def _with_labels(raw: RawDataset, labels: Sequence[int]) -> RawDataset:
    """Keep the images of these labels, which become 0, 1, … in this order."""
    label_of = torch.full((len(raw.class_names),), -1)
    label_of[list(labels)] = torch.arange(len(labels))

    def kept(split: LabelledImages) -> LabelledImages:
        labels = label_of[split.labels]
        return LabelledImages(split.take(labels >= 0).images, labels[labels >= 0])

    names = tuple(raw.class_names[label] for label in labels)
    return RawDataset(raw.name, kept(raw.train), kept(raw.test), names)


def without_empty_classes(raw: RawDataset) -> RawDataset:
    """Leave out classes that have a name but no images, such as the class ``N/A`` of EMNIST's letters."""
    labels = torch.cat([raw.train.labels, raw.test.labels])
    used = torch.bincount(labels, minlength=len(raw.class_names)).bool().tolist()
    empty = [name for name, has_images in zip(raw.class_names, used, strict=True) if not has_images]
    if not empty or len(used) - len(empty) < 2:
        return raw
    others = f" and {len(empty) - 1} others have" if len(empty) > 1 else " has"
    say(f"note: class {empty[0]!r}{others} no images in {raw.name}, and is left out")
    return _with_labels(raw, [label for label, has_images in enumerate(used) if has_images])


def rename_classes(raw: RawDataset, class_names: Sequence[str] | None) -> RawDataset:
    """Replace the names of the classes.

    Raises:
        ConfigurationError: there is not one name for each class, or a name is repeated.
    """
    if class_names is None:
        return raw
    if len(class_names) != len(raw.class_names) or len({*class_names}) < len(class_names):
        problem = f"the data have {len(raw.class_names)} classes, whose names must differ"
        raise ConfigurationError("data.class_names", list(class_names), problem, "give one name for each, or null")
    return RawDataset(raw.name, raw.train, raw.test, tuple(class_names))
