"""Real images: sources, preprocessing, Siamese augmentation and the LightningDataModule that combines them."""

from ast_lightning.config.data import SOURCES
from ast_lightning.data.datamodule import ImageDataModule
from ast_lightning.data.decoding import Undecoded
from ast_lightning.data.folder import image_folder
from ast_lightning.data.from_arrays import arrays, load_arrays
from ast_lightning.data.from_datasets import huggingface
from ast_lightning.data.loading import TrainingBatch
from ast_lightning.data.sources import LabelledImages, RawDataset, digits, torchvision_dataset
from ast_lightning.images import (
    FAMILIES,
    AugmentationDraw,
    ImageView,
    NoPreprocessing,
    Preprocessing,
    SiameseAugmentation,
    Standardization,
    ZcaWhitening,
    fit_preprocessing,
    load_preprocessing,
    save_preprocessing,
)

__all__ = [
    "FAMILIES",
    "SOURCES",
    "AugmentationDraw",
    "ImageDataModule",
    "ImageView",
    "LabelledImages",
    "NoPreprocessing",
    "Preprocessing",
    "RawDataset",
    "SiameseAugmentation",
    "Standardization",
    "TrainingBatch",
    "Undecoded",
    "ZcaWhitening",
    "arrays",
    "digits",
    "fit_preprocessing",
    "huggingface",
    "image_folder",
    "load_arrays",
    "load_preprocessing",
    "save_preprocessing",
    "torchvision_dataset",
]
