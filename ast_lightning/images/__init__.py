"""Preprocessing, Siamese augmentation and crops of images.

Training on a distilled dataset needs only this part of the package. It imports only torch, NumPy, safetensors and
xxhash.
"""

from ast_lightning.images.augmentation import FAMILIES, AugmentationDraw, SiameseAugmentation
from ast_lightning.images.crops import circular_crops, draw_offsets
from ast_lightning.images.preprocessing import (
    NoPreprocessing,
    Preprocessing,
    Standardization,
    ZcaWhitening,
    fit_preprocessing,
    load_preprocessing,
    preprocess,
    preprocessed_parts,
    save_preprocessing,
)
from ast_lightning.images.views import ImageView

__all__ = [
    "FAMILIES",
    "AugmentationDraw",
    "ImageView",
    "NoPreprocessing",
    "Preprocessing",
    "SiameseAugmentation",
    "Standardization",
    "ZcaWhitening",
    "circular_crops",
    "draw_offsets",
    "fit_preprocessing",
    "load_preprocessing",
    "preprocess",
    "preprocessed_parts",
    "save_preprocessing",
]
