"""Architectures of students and experts, and the functional view of a network."""

from ast_lightning.networks.convnet import ConvNet
from ast_lightning.networks.convolution import ease_second_derivatives
from ast_lightning.networks.functional import (
    FunctionalNetwork,
    NetworkFactory,
    ParameterLayout,
    build_network,
    describe_network,
    is_dropout,
    mathematical_attention,
)

__all__ = [
    "ConvNet",
    "FunctionalNetwork",
    "NetworkFactory",
    "ParameterLayout",
    "build_network",
    "describe_network",
    "ease_second_derivatives",
    "is_dropout",
    "mathematical_attention",
]
