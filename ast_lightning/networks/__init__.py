"""Architectures of students and experts, and the functional view of a network."""

from ast_lightning.networks.classic import MLP, VGG, AlexNet, LeNet
from ast_lightning.networks.convnet import ConvNet
from ast_lightning.networks.convolution import ease_second_derivatives
from ast_lightning.networks.functional import (
    FunctionalNetwork,
    NetworkFactory,
    ParameterLayout,
    build_network,
    describe_network,
    has_batch_of_one,
    is_dropout,
    mathematical_attention,
)
from ast_lightning.networks.libraries import Timm, Torchvision
from ast_lightning.networks.resnet import ResNet18

__all__ = [
    "MLP",
    "VGG",
    "AlexNet",
    "ConvNet",
    "FunctionalNetwork",
    "LeNet",
    "NetworkFactory",
    "ParameterLayout",
    "ResNet18",
    "Timm",
    "Torchvision",
    "build_network",
    "describe_network",
    "ease_second_derivatives",
    "has_batch_of_one",
    "is_dropout",
    "mathematical_attention",
]
