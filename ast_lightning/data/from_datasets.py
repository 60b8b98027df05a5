"""Images of other libraries: any Dataset class of torchvision or of your own, and any dataset of Hugging Face."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torchvision
import xxhash
from torch.utils.data import Dataset

from ast_lightning.config.parts import describe_part
from ast_lightning.data.decoding import Undecoded
from ast_lightning.errors import ConfigurationError, raised

_TEST_SPLITS = ("test", "val", "valid", "validation")
"""Names of a test split; the first that exists is used."""


def dataset_class(source: Any) -> type[Dataset[Any]] | None:
    """The Dataset class of a source, which may have bound arguments; None if it is something else."""
    found = source.func if isinstance(source, functools.partial) else source
    return found if inspect.isclass(found) and issubclass(found, Dataset) else None


def from_class(source: Callable[..., Any], root: str | None, download: bool) -> Undecoded:
    """The training and test images of a Dataset class, whose items are (image, label).

    The splits are found by the signature: ``train=True`` and ``train=False``, or ``split="train"`` and the first of
    ``"test"``, ``"val"``, ``"valid"`` and ``"validation"`` that exists. If neither argument exists, or if it is given,
    there is one split.

    Args:
        source: the class, or a ``functools.partial`` of it with further arguments.
        root, download: passed to the class if it has these arguments and they are not given in ``source``.

    Raises:
        ConfigurationError: the class raises an error.
    """
    found = dataset_class(source)
    assert found is not None
    given = dict(source.keywords) if isinstance(source, functools.partial) else {}
    known = _parameters(found)
    given |= {
        name: value
        for name, value in {"root": root and os.path.expanduser(root), "download": download}.items()
        if name in known and name not in given and value not in (None, False)
    }
    choice: tuple[str, Any, tuple[Any, ...]] | None = None
    if "train" in known and "train" not in given:
        choice = "train", True, (False,)
    elif "split" in known and "split" not in given:
        choice = "split", "train", _TEST_SPLITS
    if choice is None:
        splits = {"train": _created(found, given)}
    else:
        name, first, others = choice
        splits = {"train": _created(found, {**given, name: first})}
        splits["test"] = _first(found, [{**given, name: other} for other in others])
    names = getattr(splits["train"], "classes", None)
    return Undecoded(
        found.__name__,
        {name: _Numbered(name, dataset) for name, dataset in splits.items()},
        lambda item: splits[item[0]][item[1]][:2],
        tuple(map(str, names)) if names else None,
        identity=_identity(found, given),
        option="data.source",
        value=describe_part(found),
        label=lambda item: f"{item[0]} image {item[1]}",
    )


class _Numbered(Sequence[Any]):
    """The items (split, position) of a dataset, as a sequence that is not held in memory."""

    def __init__(self, split: str, dataset: Any) -> None:
        self._split, self._positions = split, range(len(dataset))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._positions[index]
        return [(self._split, each) for each in chosen] if isinstance(chosen, range) else (self._split, chosen)


def _parameters(found: type) -> set[str]:
    """The names of the arguments of a class, with those that it passes on to its base classes as ``**kwargs``."""
    names: set[str] = set()
    for base in found.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return names


def _created(found: type, arguments: Mapping[str, Any]) -> Any:
    try:
        return found(**arguments)
    except ImportError as error:
        remedy = f"pip install {error.name}"
        raise ConfigurationError("data.source", describe_part(found), f"{error.name} is missing", remedy) from error
    except Exception as error:  # a Dataset class may raise anything
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        remedy = "correct data.root or the arguments (+data.source.NAME=VALUE), or set data.download=true"
        raise ConfigurationError("data.source", describe_part(found), f"({shown}): {raised(error)}", remedy) from error


def _first(found: type, candidates: list[dict[str, Any]]) -> Any:
    """The first test split that can be created; the error of the first candidate if there is none."""
    failed = None
    for arguments in candidates:
        try:
            return _created(found, arguments)
        except ConfigurationError as error:
            failed = failed or error
            if not isinstance(error.__cause__, ValueError | KeyError):  # any other error is not about the name
                break
    assert failed is not None
    raise failed


def _identity(found: type, arguments: Mapping[str, Any]) -> Any:
    """What determines the images: the class, its arguments and the files below ``root``.

    None if there is no root, or if the code of the class is not in a file.
    """
    root = arguments.get("root")
    if not isinstance(root, str | Path) or not os.path.isdir(root):
        return None
    try:
        code = os.stat(inspect.getfile(found)).st_mtime_ns
    except (OSError, TypeError):  # such as <stdin>, or a notebook
        return None
    state = xxhash.xxh3_128()
    for here, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for file in sorted(files):
            status = os.stat(os.path.join(here, file), follow_symlinks=False)
            state.update(f"{os.path.relpath(here, root)}\0{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    others = {name: str(value) for name, value in arguments.items() if name not in ("root", "download")}
    return [describe_part(found), code, torchvision.__version__, others, state.hexdigest()]


def huggingface(
    path: str,
    name: str | None = None,
    train: str = "train",
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Undecoded:
    """A dataset of Hugging Face: a folder of ``save_to_disk``, a folder of files, or a name on the Hub.

    Args:
        path: the folder, or the name, such as ``"uoft-cs/cifar10"``.
        name: name of a configuration of the dataset.
        train: name of the training split.
        test: name of the test split; None: the first of ``test``, ``val``, ``valid`` and ``validation``.
        image: name of the column of images; None: the only one.
        label: name of the column of labels, integers; None: the only one of the type ClassLabel.

    Raises:
        ConfigurationError: the package ``datasets`` is not installed, the dataset cannot be loaded, or a split or
            column does not exist.
    """
    if importlib.util.find_spec("datasets") is None:
        problem, remedy = "this needs the package datasets", "pip install 'ast-lightning[huggingface]'"
        raise ConfigurationError("data.source", "huggingface", problem, remedy)
    import datasets

    place = os.path.expanduser(path)
    saved = any(os.path.isfile(os.path.join(place, each)) for each in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, name)
    except Exception as error:  # the package has no common exception
        remedy = "give a folder, or a name on the Hub (data.source.path), which needs a connection"
        raise ConfigurationError("data.source.path", path, raised(error), remedy) from error
    splits = dict(loaded) if isinstance(loaded, Mapping) else {train: loaded}
    for option, wanted in (("train", train), ("test", test)):
        if wanted is not None and wanted not in splits:
            remedy = f"choose one of {', '.join(splits)}"
            raise ConfigurationError(f"data.source.{option}", wanted, f"{path} has no such split", remedy)
    test = test or next((each for each in _TEST_SPLITS if each in splits and each != train), None)
    chosen = {"train": splits[train], **({} if test is None else {"test": splits[test]})}
    columns = chosen["train"].features
    image = _column("image", image, columns, datasets.Image, path)
    label = _column("label", label, columns, datasets.ClassLabel, path)
    names = getattr(columns[label], "names", None)
    return Undecoded(
        os.path.basename(place.rstrip("/")),
        {split: _Numbered(split, rows) for split, rows in chosen.items()},
        lambda item: ((row := chosen[item[0]][item[1]])[image], row[label]),
        tuple(map(str, names)) if names else None,
        identity=["huggingface", {split: rows._fingerprint for split, rows in chosen.items()}, image, label],
        option="data.source.path",
        value=path,
        label=lambda item: f"{item[0]} image {item[1]}",
    )


def _column(option: str, given: str | None, columns: Mapping[str, Any], kind: type, path: str) -> str:
    found = [name for name, column in columns.items() if isinstance(column, kind)]
    if given in columns:
        return str(given)
    if given is None and len(found) == 1:
        return found[0]
    problem = f"{path} has the columns {', '.join(columns)}, of which {', '.join(found) or 'none'} may be the {option}"
    raise ConfigurationError(f"data.source.{option}", given or "null", problem, "name the column")
