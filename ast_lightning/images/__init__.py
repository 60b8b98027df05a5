"""What images go through on their way to a network: preprocessing and Siamese augmentation.

Training on a distilled dataset needs these and nothing else of the package, so they import torch, NumPy, safetensors
and xxhash only.
"""

from ast_lightning.images.augmentation import FAMILIES, AugmentationDraw, SiameseAugmentation
from ast_lightning.images.preprocessing import (
    NoPreprocessing,
    Preprocessing,
    Standardization,
    ZcaWhitening,
    fit_preprocessing,
    load_preprocessing,
    preprocess,
    save_preprocessing,
)

__all__ = [
    "FAMILIES",
    "AugmentationDraw",
    "NoPreprocessing",
    "Preprocessing",
    "SiameseAugmentation",
    "Standardization",
    "ZcaWhitening",
    "fit_preprocessing",
    "load_preprocessing",
    "preprocess",
    "save_preprocessing",
]
