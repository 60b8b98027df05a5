"""Decode the images of a dataset to uint8 arrays of one size, in several processes, with a progress bar.

Images are rotated according to their EXIF data, and transparent pixels become white. Large datasets are decoded into a
cache on disk (:mod:`~ast_lightning.data.cache`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from ast_lightning.config.data import RESIZES
from ast_lightning.data.cache import cached_arrays, entry_folder, write_array
from ast_lightning.data.sources import LabelledImages, RawDataset
from ast_lightning.data.splits import check_memory
from ast_lightning.errors import ConfigurationError, printable
from ast_lightning.images import ImageView
from ast_lightning.storage.inspection import count
from ast_lightning.terminal import is_rank_zero, say

UNCACHED_BYTES = 16 * 2**20
"""Files of less than this in total are decoded in memory at each start, which takes about a second."""
_CHUNK = 128  # the most images that a process decodes at once
_FORMAT = 1  # of the identity of cached images
_QUIET = 30.0  # without a terminal: seconds between lines of progress
_MOST_ELONGATED = 100  # longer images are cropped to this aspect ratio first, to limit memory
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class Undecoded:
    """A dataset whose images are still to be decoded.

    Attributes:
        name: name of the dataset.
        splits: the items of ``train`` and, if there is one, of ``test``.
        read: item → image, label. The image is a PIL image, a uint8 tensor [C, H, W] or a uint8 array [H, W, C].
        class_names: names by label; None: the labels, which are then 0 … the largest one.
        channels: channels of the images unless ``data.channels`` is set; None: as in the first image.
        identity: plain containers that determine all images; None if that is not known, and nothing is cached.
        size: bytes of all files; None if unknown.
        option, value: what the messages name.
        label: item → its name in messages.
    """

    name: str
    splits: Mapping[str, Sequence[Any]]
    read: Callable[[Any], tuple[Any, int]]
    class_names: tuple[str, ...] | None = None
    channels: int | None = None
    identity: Any = None
    size: int | None = None
    option: str = "data.root"
    value: object = None
    label: Callable[[Any], str] = str


def decode(
    source: Undecoded,
    *,
    image_size: int | None = None,
    resize: str = "crop",
    channels: int | None = None,
    cache: str | Path | None = None,
) -> RawDataset:
    """Decode a dataset. Its test split is empty if the source has none.

    Args:
        source: the images.
        image_size: side of the square images in pixels; None: all images have the size of the first.
        resize: ``"crop"`` resizes the shorter side, antialiased, and crops the centre; ``"squash"`` ignores the
            aspect ratio.
        channels: 3 (RGB) or 1 (grey); None: those of the source.
        cache: the folder of all cached datasets; None: decode into memory.

    Raises:
        ConfigurationError: an argument is invalid, images cannot be decoded, in which case a line is printed for each
            of them, or the disk is full.
        OSError: the cache cannot be read or written.
    """
    decoder = _decoder(source, image_size, resize, channels)
    small = source.size is not None and source.size < UNCACHED_BYTES
    total = sum(map(len, source.splits.values()))
    if cache is None or source.identity is None or small:
        check_memory(total, *decoder.shape)
        splits = _decode_to_memory(decoder, small)
    else:
        identity = [_FORMAT, source.identity, list(decoder.shape), resize]
        entry, size = entry_folder(cache, source.name, identity), total * int(np.prod(decoder.shape))
        arrays = cached_arrays(entry, size, lambda folder: _decode_to_disk(decoder, folder))
        splits = {
            name: LabelledImages(ImageView(arrays[name], folder=entry), arrays[f"{name}_labels"].clone())
            for name in source.splits
        }
    names = source.class_names
    if names is None:
        names = tuple(map(str, range(1 + int(max(split.labels.max() for split in splits.values())))))
    counts = f"{len(splits['train'])} training"
    counts += f" and {len(splits['test'])} test images" if "test" in splits else " images"
    say(f"{source.value or source.name}: {counts} of {count(len(names), 'class')}")
    train = splits["train"]
    return RawDataset(source.name, train, splits.get("test", train.take(torch.arange(0))), names)


class _Decoder:
    """Decodes single items. It is inherited by the processes, so that items are not sent to them.

    Args:
        source: the images.
        shape: (C, H, W) of the result.
        fit: resizes a PIL image.
    """

    def __init__(self, source: Undecoded, shape: tuple[int, int, int], fit: Callable[[Image.Image], Image.Image]):
        self.source, self.shape, self.fit = source, shape, fit

    def chunk(self, split: str, where: slice) -> tuple[np.ndarray, list[int], list[str]]:
        """The images [n, C, H, W] and labels of a slice of a split, and why some of them cannot be read."""
        items = self.source.splits[split][where]
        images, labels, problems = np.zeros((len(items), *self.shape), np.uint8), [0] * len(items), []
        for position, item in enumerate(items):
            try:
                image, label = self.source.read(item)
                images[position] = self._array(image)
                labels[position] = int(label)
            except Exception as error:  # Pillow does not document its errors for damaged files
                problems.append(printable(f"{self.source.label(item)} ({error})"))
        return images, labels, problems

    def _array(self, image: Any) -> np.ndarray:
        pixels = np.asarray(self.fit(picture(image, _MODES[self.shape[0]])))
        if pixels.shape[:2] != self.shape[1:]:
            size = "×".join(map(str, pixels.shape[:2]))
            raise ValueError(f"it has {size} pixels, but the first image has another size; set data.image_size=32")
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def picture(image: Any, mode: str) -> Image.Image:
    """An upright PIL image of this mode, without transparency, from a PIL image, a uint8 tensor or a uint8 array."""
    image = _as_pil(image)
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would silently clip these to white
        raise ValueError(f"its pixels are of more than 8 bits (mode {image.mode}); convert it first")
    upright = ImageOps.exif_transpose(image)  # cameras store the rotation as metadata
    if upright.has_transparency_data:  # the colour of transparent pixels is arbitrary
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return upright.convert(mode)


def _as_pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if getattr(image, "dtype", None) not in (torch.uint8, np.uint8):
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"an image is a PIL image or uint8, not {kind}: leave out transforms")
    return transforms.to_pil_image(image)


def _crop(image: Image.Image, size: int) -> Image.Image:
    if max(image.size) > _MOST_ELONGATED * min(image.size):
        longest = _MOST_ELONGATED * min(image.size)
        image = transforms.center_crop(image, [min(side, longest) for side in (image.height, image.width)])
    return transforms.center_crop(transforms.resize(image, [size], antialias=True), [size, size])


def _squash(image: Image.Image, size: int) -> Image.Image:
    return transforms.resize(image, [size, size], antialias=True)


_FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "squash": _squash}


def _decoder(source: Undecoded, image_size: int | None, resize: str, channels: int | None) -> _Decoder:
    if resize not in RESIZES:
        raise ConfigurationError("data.resize", resize, "no such choice", f"use one of {', '.join(RESIZES)}")
    channels = channels or source.channels
    if channels not in (None, *_MODES):
        raise ConfigurationError("data.channels", channels, "no such choice", "use 1 or 3")
    if image_size is not None and channels is not None:
        return _Decoder(source, (channels, image_size, image_size), lambda image: _FITS[resize](image, image_size))
    first = source.splits["train"][0]
    try:
        image = _as_pil(source.read(first)[0])
    except Exception as error:
        problem = f"the image {source.label(first)} cannot be read ({error})"
        raise ConfigurationError(source.option, source.value, problem, "repair or remove it") from error
    channels = channels or (1 if image.mode in ("1", "L") else 3)
    if image_size is None:
        return _Decoder(source, (channels, image.height, image.width), lambda image: image)
    return _Decoder(source, (channels, image_size, image_size), lambda image: _FITS[resize](image, image_size))


def _decode_to_memory(decoder: _Decoder, small: bool) -> dict[str, LabelledImages]:
    """Decode into preallocated tensors, so that no second copy is in memory."""
    splits = {}
    with _Decoding(decoder, small) as decoding:
        for name, items in decoder.source.splits.items():
            images = torch.empty((len(items), *decoder.shape), dtype=torch.uint8)
            done = 0
            for part in decoding.parts(name):
                images[done : done + len(part)] = torch.from_numpy(part)
                done += len(part)
            splits[name] = LabelledImages(images, torch.tensor(decoding.labels))
    return splits


def _decode_to_disk(decoder: _Decoder, folder: Path) -> None:
    with _Decoding(decoder, small=False) as decoding:
        for name, items in decoder.source.splits.items():
            write_array(folder / f"{name}.npy", (len(items), *decoder.shape), np.uint8, decoding.parts(name))
            write_array(folder / f"{name}_labels.npy", (len(items),), np.int64, [np.array(decoding.labels)])


class _Decoding:
    """A pool of processes or threads, a progress bar, and the problems that were found.

    Attributes:
        labels: the labels of the split that was decoded last.
    """

    def __init__(self, decoder: _Decoder, small: bool) -> None:
        self.source, self.labels, self._problems = decoder.source, list[int](), list[str]()
        self._total, self._done = sum(map(len, self.source.splits.values())), 0
        self._printed = time.monotonic()
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._size = max(1, min(_CHUNK, self._total // (8 * workers)))
        self._pool: Executor
        # Threads, if processes would take longer to start or cannot be forked. Pillow releases the GIL while it decodes
        # and resizes, but not while it opens files.
        if small or sys.platform != "linux" or multiprocessing.current_process().daemon:
            self._pool, self._chunk = ThreadPoolExecutor(workers), decoder.chunk
        else:
            fork = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(workers, fork, _prepare_process, (decoder,))
            self._chunk = _decode_chunk
        silent = small or not is_rank_zero() or not sys.stdout.isatty()
        self._bar = tqdm(
            desc="decoding", total=self._total, unit="image", file=sys.stdout, dynamic_ncols=True, disable=silent
        )
        self._lines = silent and not small

    def __enter__(self) -> _Decoding:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        self._pool.shutdown(cancel_futures=True)
        if error[0] is None:
            self._check()

    def parts(self, split: str) -> Iterator[np.ndarray]:
        """The images of a split in order, uint8 [n, C, H, W]."""
        self.labels = []
        slices = [slice(start, start + self._size) for start in range(0, len(self.source.splits[split]), self._size)]
        try:
            for images, labels, problems in self._pool.map(self._chunk, [split] * len(slices), slices):
                self.labels += labels
                self._problems += problems
                self._advance(len(images))
                yield images
        except BrokenProcessPool as error:
            problem = "a process that decodes images was killed, perhaps because memory is full"
            remedy = "rerun the command, with fewer CPUs (taskset) if memory is scarce"
            raise ConfigurationError(self.source.option, self.source.value, problem, remedy) from error

    def _check(self) -> None:
        """Report all images that cannot be read.

        Raises:
            ConfigurationError: there are some.
        """
        if problems := self._problems:
            for line in problems:
                say(f"cannot be read: {line}")
            more = f", and {len(problems) - 1} more that are named above" if len(problems) > 1 else ""
            problem = f"this image cannot be read: {problems[0]}{more}"
            raise ConfigurationError(self.source.option, self.source.value, problem, "repair or remove the files")

    def _advance(self, images: int) -> None:
        self._bar.update(images)
        self._done += images
        if self._lines and time.monotonic() - self._printed > _QUIET:
            self._printed = time.monotonic()
            say(f"decoding: {self._done} of {self._total} images")


_decoder_of_process: _Decoder | None = None


def _decode_chunk(split: str, where: slice) -> tuple[np.ndarray, list[int], list[str]]:
    assert _decoder_of_process is not None
    return _decoder_of_process.chunk(split, where)


def _prepare_process(decoder: _Decoder) -> None:
    """Leave Ctrl-C and SIGTERM to the parent process, and end with it, even if it is killed."""
    global _decoder_of_process
    _decoder_of_process = decoder  # inherited by the fork: nothing is pickled
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
