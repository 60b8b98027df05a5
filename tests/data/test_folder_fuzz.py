"""Folders of odd files: one line that says what is wrong, or the images that another reading of them finds.

``AST_FUZZ=5000 pytest tests/data/test_folder_fuzz.py`` tries as many folders.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from ast_lightning.data import ImageDataModule, RawDataset, image_folder
from ast_lightning.errors import ConfigurationError

Pixels = np.ndarray
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CLASSES = ("cat", "dog", "ü", "a b", "line\nbreak", "🦊", "9", "x.png", "-rf", "[red]", "\x1b[31m", "%s{0}")
IMAGES = (
    "plain",
    "grey",
    "bit",
    "palette",
    "palette_alpha",
    "alpha",
    "grey_alpha",
    "cmyk",
    "animated",
    "turned",
    "tiny",
)
IMAGES += ("strip", "jpeg_as_png", "tiff", "webp", "bmp", "upper_case", "linked")
SKIPPED = ("text.txt", "picture.gif", "picture.avif", "no_extension", ".hidden.png", ".thumbs/0.png", "png")
BAD = ("empty", "text", "cut_png", "cut_jpeg", "deep_grey", "floats", "dangling", "pipe", "eps", "bomb", "half_header")


class File(NamedTuple):
    """A file of the tree: what it is, the name it begins with, a subfolder, and the seed of its pixels."""

    kind: str
    stem: str
    inside: str
    seed: int


def pixels(seed: int, depth: int = 3) -> Pixels:
    generator = np.random.default_rng(seed)
    width, height = generator.integers(2, 14, 2)
    return generator.integers(0, 256, (height, width, depth), dtype=np.uint8)


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, file: File) -> Path:
    """Write one file below the folder of a class; the path that it has."""
    kind, seed = file.kind, file.seed
    colours = Image.fromarray(pixels(seed))
    suffix, content = ".png", b""
    if kind in SKIPPED:
        target = path / file.inside / (kind if kind.startswith(".") else f"{seed}{kind}" if "." in kind else kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(colours))
        return target
    if kind == "grey":
        content = png(colours.convert("L"))
    elif kind == "bit":
        content = png(colours.convert("1"))
    elif kind == "palette":
        content = png(colours.convert("P", palette=Image.Palette.ADAPTIVE))
    elif kind == "palette_alpha":
        content = png(colours.convert("P", palette=Image.Palette.ADAPTIVE), transparency=0)
    elif kind == "alpha":
        content = png(Image.fromarray(pixels(seed, 4), "RGBA"))
    elif kind == "grey_alpha":
        content = png(Image.fromarray(pixels(seed, 2), "LA"))
    elif kind == "cmyk":
        suffix, content = ".jpg", png(colours.convert("CMYK"), "JPEG")
    elif kind == "animated":
        more = [Image.new("RGB", colours.size, colour) for colour in ("red", "blue")]
        content = png(colours, "GIF", save_all=True, append_images=more)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = seed % 10  # 0 and 9 mean nothing
        suffix, content = ".jpeg", png(colours, "JPEG", exif=exif)
    elif kind == "tiny":
        content = png(colours.crop((0, 0, 1, 1)))
    elif kind == "strip":
        size = (1, 2000 + seed % 999)
        content = png(Image.new("RGB", size if seed % 2 else size[::-1], tuple(pixels(seed)[0, 0].tolist())))
    elif kind == "jpeg_as_png":
        content = png(colours, "JPEG")
    elif kind in ("tiff", "webp", "bmp"):
        suffix, content = f".{kind}", png(colours, kind, **({"lossless": True} if kind == "webp" else {}))
    elif kind == "upper_case":
        suffix, content = ".PNG", png(colours)
    elif kind == "text":
        content = b"this is no image\n"
    elif kind in ("cut_png", "cut_jpeg"):
        whole = png(
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)), kind[4:]
        )
        content = whole[: len(whole) // 2]
    elif kind == "half_header":
        content = png(colours)[:20]
    elif kind == "deep_grey":
        content = png(Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)))
    elif kind == "floats":
        suffix, content = ".tif", png(Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), "TIFF")
    elif kind == "eps":
        content = png(colours, "EPS")
    elif kind == "bomb":
        content = b"P6\n70000 70000\n255\n" + bytes(30)
        suffix = ".ppm"
    else:
        content = png(colours)
    target = path / file.inside / f"{file.stem}{seed}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "empty":
        target.write_bytes(b"")
    elif kind == "dangling":
        target.symlink_to(path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "linked":
        elsewhere = path.parents[2] / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / f"{seed}").write_bytes(content)
        target.symlink_to(elsewhere / f"{seed}")
    else:
        target.write_bytes(content)
    return target


def read(path: Path, file: File, size: int, resize: str, channels: int) -> Pixels:
    """``[C, size, size]``, from Pillow's decoding and arithmetic of our own."""
    with Image.open(path) as image:
        image.seek(0)
        turn = TURNS.get(file.seed % 10) if file.kind == "turned" else None
        upright = image if turn is None else image.transpose(turn)
        if "alpha" in file.kind:
            rgba = np.asarray(upright.convert("RGBA"), dtype=np.float64)
            opacity = rgba[..., 3:] / 255
            blended = np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
            upright = Image.fromarray(blended)
        plain = upright.convert("RGB" if channels == 3 else "L")
    if file.kind == "strip":
        plain = plain.crop((0, 0, 1, 1))
    width, height = plain.size
    if resize == "squash":
        found = plain.resize((size, size), Image.Resampling.BILINEAR)
    else:
        short = min(width, height)
        found = plain.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BILINEAR)
        left, top = round((found.width - size) / 2), round((found.height - size) / 2)
        found = found.crop((left, top, left + size, top + size))
    return np.atleast_3d(np.asarray(found)).transpose(2, 0, 1)


STEMS = ("", "a", "ü", "new\nline", " ", "🦊", "-", "[b]", "\x1b[2J")
FOLDERS = ("", "", "", "deeper", "deeper/and.png", "z")
seeds = st.integers(0, 10_000)
good = st.builds(File, st.sampled_from(IMAGES), st.sampled_from(STEMS), st.sampled_from(FOLDERS), seeds)
odd_files = st.builds(File, st.sampled_from((*SKIPPED, *BAD)), st.sampled_from(STEMS), st.sampled_from(FOLDERS), seeds)
skipped = st.builds(File, st.sampled_from(SKIPPED), st.just(""), st.sampled_from(FOLDERS), seeds)


@st.composite
def folders(draw: Callable[..., Any]) -> tuple[dict[str, dict[str, list[File]]], list[str]]:
    """The files by split and class, and what is odd about the tree itself: half of the folders can be read."""
    names = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True))
    splits = {
        split: {name: draw(st.lists(good, min_size=1, max_size=4)) for name in names} for split in ("train", "test")
    }
    odd = draw(st.lists(st.sampled_from(("loop", "hidden_class", "stray", "link")), max_size=2))
    for split in splits.values():
        for contents in split.values():
            contents += draw(st.lists(skipped, max_size=1))
    trouble = draw(st.sampled_from((*[""] * 6, "files", "files", "files", "no_test", "lacks", "empty", "no_class")))
    one = splits[draw(st.sampled_from(("train", "test")))]
    if trouble == "files":
        for contents in one.values():
            contents += draw(st.lists(odd_files, max_size=2))
    elif trouble == "no_test":
        del splits["test"]
    elif trouble == "lacks":
        del one[names[0]]
    elif trouble == "empty":
        one[names[0]] = draw(st.lists(skipped, max_size=2))
    elif trouble == "no_class":
        one.clear()
    return splits, [*odd, trouble]


def build(
    root: Path, splits: dict[str, dict[str, list[File]]], odd: list[str]
) -> dict[str, dict[str, dict[Path, File]]]:
    """Write the tree; its files by split, class and path."""
    written: dict[str, dict[str, dict[Path, File]]] = {}
    for split, classes in splits.items():
        (root / split).mkdir(parents=True)
        for name, contents in classes.items():
            folder = root / split / name
            if "link" in odd:  # the class is a link to a folder elsewhere
                (root / "far" / split / name).mkdir(parents=True)
                folder.symlink_to(root / "far" / split / name)
            folder.mkdir(exist_ok=True)
            kept = written.setdefault(split, {}).setdefault(name, {})
            for number, file in enumerate(contents):
                file = file._replace(seed=10 * file.seed + 100_010 * number + file.seed % 10)
                path = write(folder, file)
                if file.kind not in SKIPPED:
                    kept[path] = file
            if "loop" in odd:
                (folder / "loop").symlink_to(folder)
                (folder / "deeper").mkdir(exist_ok=True)
                (folder / "deeper" / "up").symlink_to(folder)
        if "hidden_class" in odd:
            (root / split / ".cache").mkdir()
            (root / split / ".cache" / "0.png").write_bytes(b"")
        if "stray" in odd:
            (root / split / "stray.png").write_bytes(b"")
    return written


@settings(
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("AST_FUZZ", "60")),
    suppress_health_check=list(HealthCheck),
)
@given(
    folder=folders(),
    size=st.integers(1, 12),
    resize=st.sampled_from(("crop", "squash")),
    channels=st.sampled_from((1, 3)),
)
def test_a_folder_is_read_right_or_refused_in_a_line(
    folder: tuple[dict[str, dict[str, list[File]]], list[str]], size: int, resize: str, channels: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()) as out:
        root = Path(scratch) / "images"
        root.mkdir()
        written = build(root, *folder)
        try:
            raw = image_folder(root, size, resize, channels)
        except ConfigurationError as error:
            assert_wrong(written, error, out.getvalue())
            event(" ".join(error.problem.split()[:2]))
            return
        event("read")
        assert_right(raw, written, size, resize, channels)
        assert all(line.isprintable() for line in out.getvalue().splitlines())
        if len(raw.class_names) > 1 and raw.train.images.min() < raw.train.images.max():
            data = ImageDataModule(lambda: raw, preprocessing="none")
            for split in (data.train, data.test):
                assert split.images.isfinite().all()
                assert 0 <= float(split.images.min()) <= float(split.images.max()) <= 1
            assert ImageDataModule(lambda: raw).train.images.isfinite().all()


def assert_wrong(written: dict[str, dict[str, dict[Path, File]]], error: ConfigurationError, out: str) -> None:
    """There is a reason, and it is the one that is named, in one line without control characters."""
    message = str(error)
    assert message.isprintable()
    assert all(line.isprintable() for line in out.splitlines())
    assert error.option == "data.root"
    train, test = (written.get(split, {}) for split in ("train", "test"))
    bad = [
        path for split in (train, test) for kept in split.values() for path, file in kept.items() if file.kind in BAD
    ]
    if not train or not test:
        assert "there is no folder test/" in message or "no class folders" in message
    elif not all((*train.values(), *test.values())):
        assert "no images in" in message
    elif train.keys() != test.keys():
        assert "different classes" in message
    else:
        assert bad
        assert "cannot be read" in message
        assert out.count("cannot be read: ") == len(bad)


def assert_right(
    raw: RawDataset, written: dict[str, dict[str, dict[Path, File]]], size: int, resize: str, channels: int
) -> None:
    assert raw.class_names == tuple(sorted(written["train"]))
    for split, found in (("train", raw.train), ("test", raw.test)):
        assert found.images.dtype == torch.uint8
        place = 0
        for label, name in enumerate(raw.class_names):
            kept = written[split][name]
            assert kept
            for path in sorted(kept, key=lambda each: (str(each.parent), each.name)):
                wanted = read(path, kept[path], size, resize, channels)
                seen = found.images[place].numpy()
                assert seen.shape == (channels, size, size) == wanted.shape
                assert np.abs(seen.astype(int) - wanted).max() <= 1, kept[path]
                assert int(found.labels[place]) == label
                place += 1
        assert place == len(found.images) == len(found.labels)
