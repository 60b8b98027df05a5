"""Preprocessing of images: ZCA whitening or standardisation, and their inverses.

Both are fitted once, on the training split, and stored with all results: trajectories contain the fingerprint, and a
distilled dataset contains the tensors, so that test images can be normalised in the same way.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ast_lightning.errors import ConfigurationError
from ast_lightning.storage.checksums import FIELD, read_checked_tensors, tensor_checksum
from ast_lightning.storage.files import write_tensors

_CHUNK_BYTES = 256 * 2**20  # size of the chunks for matrix products and conversions from uint8
_PART = 1024  # images of which statistics are computed at once
_SVD_FEATURES = 3072  # largest images (3×32×32) for which the published singular value decomposition is practicable
_GIB = 2**30


class Images(Protocol):
    """A tensor [N, C, H, W], or an :class:`~ast_lightning.images.ImageView`."""

    @property
    def shape(self) -> torch.Size: ...

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[Tensor]: ...


class Preprocessing(ABC):
    """An invertible affine map, the same for every image.

    Images are floating point [N, C, H, W] on any device; the statistics are converted to their device and dtype.
    """

    kind: str
    elementwise = True
    """Whether each value is preprocessed by itself, so that the result does not depend on the size of a batch."""

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Preprocess images in [0, 1]. Differentiable."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """Convert preprocessed images back to images in [0, 1], without clamping. Differentiable."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The statistics, float32 on the CPU."""

    def describe(self) -> dict[str, Any]:
        """The kind and its settings, as plain JSON values."""
        return {"kind": self.kind}

    def difference(self, other: Preprocessing) -> str | None:
        """What differs from ``other`` by more than rounding errors, which depend on the machine.

        Returns:
            ``kind``, the name of a statistic, or None if they are equal.
        """
        if self.kind != other.kind:
            return "kind"
        theirs = other.tensors()
        for name, tensor in self.tensors().items():
            if tensor.shape != theirs[name].shape or not torch.allclose(tensor, theirs[name], rtol=1e-2, atol=1e-3):
                return name
        return None

    def fingerprint(self) -> str:
        """Checksum of the kind and all statistics, 16 hexadecimal digits."""
        digest = hashlib.sha256(self.kind.encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _tensors_for(self, images: Tensor) -> dict[str, Tensor]:
        """The statistics on the device and in the dtype of ``images``."""
        return {name: tensor.to(images) for name, tensor in self.tensors().items()}


class NoPreprocessing(Preprocessing):
    """No preprocessing: networks are given images in [0, 1]."""

    kind = "none"

    def apply(self, images: Tensor) -> Tensor:
        return images

    def invert(self, images: Tensor) -> Tensor:
        return images

    def tensors(self) -> dict[str, Tensor]:
        return {}


class Standardization(Preprocessing):
    """(x − mean) / std, per channel.

    Args:
        mean: float32 [C], in [0, 1].
        std: float32 [C], positive.
    """

    kind = "standardize"

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = _stored(mean), _stored(std)

    def apply(self, images: Tensor) -> Tensor:
        moved = self._tensors_for(images)
        return (images - moved["mean"].view(-1, 1, 1)) / moved["std"].view(-1, 1, 1)

    def invert(self, images: Tensor) -> Tensor:
        moved = self._tensors_for(images)
        return images * moved["std"].view(-1, 1, 1) + moved["mean"].view(-1, 1, 1)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean.tolist(), "std": self.std.tolist()}


class ZcaWhitening(Preprocessing):
    """(x − mean) W over flattened images, with W = U (S + eps)^(−1/2) Uᵀ (method section 6).

    Args:
        mean: float32 [D], D = C·H·W.
        transform: W, float32 [D, D].
        inverse: U (S + eps)^(1/2) Uᵀ, float32 [D, D].
        eps: constant that was added to the eigenvalues of the covariance.
    """

    kind = "zca"
    elementwise = False

    def __init__(self, mean: Tensor, transform: Tensor, inverse: Tensor, eps: float) -> None:
        self.mean, self.transform, self.inverse = _stored(mean), _stored(transform), _stored(inverse)
        self.eps = float(eps)

    def apply(self, images: Tensor) -> Tensor:
        moved = self._tensors_for(images)
        return _in_chunks(images, lambda flat: (flat - moved["mean"]) @ moved["transform"])

    def invert(self, images: Tensor) -> Tensor:
        moved = self._tensors_for(images)
        return _in_chunks(images, lambda flat: flat @ moved["inverse"] + moved["mean"])

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "transform": self.transform, "inverse": self.inverse}

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "eps": self.eps, "features": len(self.mean)}


def fit_preprocessing(
    kind: str,
    images_uint8: Images,
    *,
    zca_eps: float = 0.1,
    zca_max_features: int = 12288,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing:
    """Fit the preprocessing on the training images.

    Args:
        kind: ``standardize``, ``zca`` or ``none``.
        images_uint8: uint8 [N, C, H, W]. ZCA of a view, and of images with more than 3,072 values, is computed from a
            covariance that is summed in parts. The statistics differ from those of a tensor by rounding errors.
        zca_eps: added to the eigenvalues of the covariance, in units of squared pixel values in [0, 1].
        zca_max_features: ZCA is rejected for images with more values than this, because of its memory.
        mean, std: per-channel constants that ``"standardize"`` uses instead of fitted ones.

    Raises:
        ConfigurationError: the kind is unknown, the images are too large for ZCA, or the constants do not match the
            images.
    """
    if kind == "standardize":
        return _standardization(images_uint8, mean, std)
    if kind == "zca":
        return _zca(images_uint8, zca_eps, zca_max_features)
    if kind == "none":
        return NoPreprocessing()
    kinds = ", ".join(each.kind for each in (Standardization, ZcaWhitening, NoPreprocessing))
    raise ConfigurationError("data.preprocessing", kind, "no such choice", f"use one of {kinds}")


def preprocess(preprocessing: Preprocessing, images_uint8: Images) -> Tensor:
    """Convert uint8 [N, C, H, W] to preprocessed float32 of that shape, in chunks to save memory."""
    result = torch.empty(images_uint8.shape, dtype=torch.float32)
    parts = preprocessed_parts(preprocessing, images_uint8)
    for part, out in zip(parts, result.split(_chunk_length(images_uint8)), strict=True):
        out.copy_(part)
    return result


def preprocessed_parts(preprocessing: Preprocessing, images_uint8: Images) -> Iterable[Tensor]:
    """The parts of the result of :func:`preprocess`, one after another."""
    return (preprocessing.apply(part.float().div_(255)) for part in images_uint8.split(_chunk_length(images_uint8)))


def save_preprocessing(path: str | Path, preprocessing: Preprocessing) -> None:
    """Write the statistics to one .safetensors file, with :meth:`Preprocessing.describe` and a checksum as metadata."""
    tensors = preprocessing.tensors()
    about = {"preprocessing": json.dumps(preprocessing.describe()), "fingerprint": preprocessing.fingerprint()}
    write_tensors(Path(path), tensors, {**about, FIELD: tensor_checksum(tensors, about)})


def load_preprocessing(path: str | Path) -> Preprocessing:
    """Read a file written by :func:`save_preprocessing`.

    Raises:
        ValueError: the file has another format, or does not match its checksum.
        OSError: it cannot be read.
    """
    metadata, tensors = read_checked_tensors(Path(path))
    description = json.loads(metadata.get("preprocessing", "{}"))
    kind = description.get("kind")
    if kind == "zca":
        return ZcaWhitening(**tensors, eps=description["eps"])
    if kind == "standardize":
        return Standardization(**tensors)
    if kind == "none":
        return NoPreprocessing()
    raise ValueError(f"it holds no preprocessing (kind {kind!r})")


def _standardization(images: Images, mean: Sequence[float] | None, std: Sequence[float] | None) -> Standardization:
    if mean is None and std is None:
        return Standardization(*_channel_statistics(images))
    if mean is None or std is None:
        problem = f"mean and std are given together or not at all (data.std={std})"
        raise ConfigurationError("data.mean", mean, problem, "give both or null")
    for option, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != images.shape[1]:
            problem = f"{len(values)} values for images of {images.shape[1]} channels"
            raise ConfigurationError(option, list(values), problem, "give one value per channel, or null")
    if min(std) <= 0:
        raise ConfigurationError("data.std", list(std), "they must be positive", "correct it or use null")
    return Standardization(torch.tensor(list(mean)), torch.tensor(list(std)))


def _channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (over N) of each channel of uint8 images, as values in [0, 1].

    They are computed from an exact histogram, so that the result is bit-identical for every machine and thread count.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(_PART):
        counts += torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in part.unbind(1)])
    weights = counts.to(torch.float64) / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (weights * values).sum(1)
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    # A channel without contrast is not scaled; a deviation far below one grey level is a rounding error.
    return mean, torch.where(std < 1e-9, torch.ones_like(std), std)


def _zca(images: Images, eps: float, max_features: int) -> ZcaWhitening:
    features = math.prod(images.shape[1:])
    if features > max_features:
        stored = 2 * 4 * features**2  # transform and inverse in float32
        problem = (
            f"images of {features} values, more than data.zca_max_features={max_features}: whitening takes about "
            f"{5 * 4 * features**2 / _GIB:.1f} GiB of memory and {stored / _GIB:.1f} GiB in every saved copy"
        )
        remedy = "use data.preprocessing=standardize or a smaller data.image_size, or raise data.zca_max_features"
        raise ConfigurationError("data.preprocessing", "zca", problem, remedy)
    if not eps > 0:
        raise ConfigurationError("data.zca_eps", eps, "it must be positive", "use 0.1, as published")
    if features > _SVD_FEATURES or not isinstance(images, Tensor):
        return ZcaWhitening(*_zca_in_parts(images, eps), eps)
    from kornia.enhance import zca_mean  # late: loading fitted statistics does not need kornia

    transform, mean, inverse = zca_mean(images.float().div_(255), eps=float(eps), return_inverse=True)
    assert inverse is not None
    return ZcaWhitening(mean.reshape(-1), transform, inverse, eps)


def _zca_in_parts(images: Images, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, transform and inverse from images that are read twice, in parts.

    The memory is that of five matrices [D, D] in float32, whatever the number of images.
    """
    features = math.prod(images.shape[1:])
    total = torch.zeros(features, dtype=torch.int64)
    for part in images.split(_PART):
        total += part.flatten(1).sum(0)
    mean = (total.double() / (255 * len(images))).float()
    covariance = torch.zeros(features, features)
    for part in images.split(_PART):
        centred = part.flatten(1).float().div_(255).sub_(mean)
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance.div_(len(images) - 1))
    del covariance
    shifted = values.clamp_(min=0).add_(eps)  # rounding errors make eigenvalues of 0 negative
    return mean, (vectors * shifted.rsqrt()) @ vectors.T, (vectors * shifted.sqrt()) @ vectors.T


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _chunk_length(images: Images) -> int:
    return max(1, _CHUNK_BYTES // max(1, 4 * math.prod(images.shape[1:])))


def _in_chunks(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of flattened images in chunks of ``_CHUNK_BYTES``."""
    parts = [function(part.flatten(1)) for part in images.split(_chunk_length(images))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(images.shape)
