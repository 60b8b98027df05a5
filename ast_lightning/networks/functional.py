"""A network as a pure function of one flat parameter vector.

Trajectory matching compares, adds and differentiates whole parameter vectors. After expert training, a network is
therefore used as ``logits = network(theta, images)`` with ``theta`` of shape ``[P]``. Only this file converts between
the vector and the tensors of a module.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_lightning.errors import ConfigurationError, raised
from ast_lightning.randomness import Key, keyed_global_state

NetworkFactory = Callable[[], nn.Module]
"""Builds a newly initialised network, using torch's global CPU generator."""

ParameterLayout = list[tuple[str, tuple[int, ...]]]
"""Names and shapes in the order of ``module.named_parameters()``."""


def build_network(factory: NetworkFactory, *key: Key) -> nn.Module:
    """Build a network whose initial parameters depend only on ``key``: on the CPU, in float32 at every precision.

    Raises:
        ConfigurationError: the factory raises or does not return a module, or parameters are missing or frozen.
    """
    try:
        with keyed_global_state(*key), _float32_by_default():
            network = factory()
    except ConfigurationError:
        raise
    except Exception as error:  # raised by user code
        problem = f"it cannot be built: {raised(error)}"
        remedy = _remedy(factory, "remedy_of_errors") or "correct its options"
        raise ConfigurationError("network", _qualified(factory), problem, remedy) from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError("network", _qualified(factory), "it is not a torch.nn.Module", "name a subclass of it")
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen or not any(True for _ in network.parameters()):
        problem = f"its parameter {frozen[0]} is frozen" if frozen else "it has no parameters"
        remedy = "give a network whose parameters are all trained; what is fixed must be a buffer"
        raise ConfigurationError("network", type(network).__name__, problem, remedy)
    return network


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()  # a Trainer with another precision changes it in each step
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def mathematical_attention() -> Any:
    """Context manager that disables fused attention kernels, which have no second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def parameter_layout(network: nn.Module) -> ParameterLayout:
    """Names and shapes of the parameters; a parameter used in two places is listed once."""
    return [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]


def describe_network(factory: NetworkFactory) -> dict[str, Any]:
    """Describe a network for a trajectory store: its class, its arguments, names and shapes of its parameters.

    Names and shapes of persistent buffers, such as the statistics of batch normalisation, are included.
    """
    network = build_network(factory, 0, "describe")
    layout = parameter_layout(network)
    state = network.state_dict()
    buffers = [[name, list(buffer.shape)] for name, buffer in network.named_buffers() if name in state]
    arguments: dict[str, Any] = {}
    if isinstance(factory, functools.partial):  # nested partials are flattened by functools
        arguments = inspect.signature(factory.func).bind_partial(*factory.args, **factory.keywords).arguments
    return {
        "target": _qualified(factory),
        "arguments": _plain(arguments, "network"),
        "parameters": [[name, list(shape)] for name, shape in layout],
        **({"buffers": buffers} if buffers else {}),
    }


def has_batch_of_one(images: int, size: int) -> bool:
    """Whether one of the batches of ``size`` that ``images`` images are divided into holds a single image."""
    return size == 1 or images % size == 1


def is_dropout(module: nn.Module) -> bool:
    """Whether the module is one of torch's dropout layers."""
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _qualified(target: Any) -> str:
    target = target.func if isinstance(target, functools.partial) else target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__name__)}"


def _remedy(target: Any, name: str = "remedy") -> str | None:
    """What a class of networks recommends: ``remedy`` for unusable logits, ``remedy_of_errors`` for an exception."""
    found: str | None = getattr(target.func if isinstance(target, functools.partial) else target, name, None)
    return found


def _plain(value: Any, option: str) -> Any:
    """Convert an argument of a network to plain JSON values; classes and functions become their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{option}.{key}") for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(item, option) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return _qualified(value)
    remedy = "give numbers, texts, lists, classes or functions"
    raise ConfigurationError(option, value, "trajectories cannot record this argument", remedy)


class FunctionalNetwork:
    """A stateless view of the networks that ``factory`` builds.

    Batch normalisation uses the statistics of the current batch, and dropout is switched off, because a pure function
    has no running statistics and draws no random numbers. :meth:`require_pure` detects state in other layers. The
    parameter values of the module inside are never used. It is not registered as a submodule, so that optimisers and
    DistributedDataParallel ignore it.

    Args:
        factory: builds the network.
    """

    def __init__(self, factory: NetworkFactory) -> None:
        self.factory = factory
        skeleton = copy.deepcopy(build_network(factory, 0, "skeleton"))
        self.layout = parameter_layout(skeleton)
        self.sizes = [math.prod(shape) for _, shape in self.layout]
        self.num_parameters = sum(self.sizes)
        self._skeleton = replace_all_batch_norm_modules_(skeleton).train()
        for module in self._skeleton.modules():
            if is_dropout(module):
                module.eval()

    def impurity(self, image: Tensor) -> str | None:
        """Why the logits depend on more than parameters and images, or None. Call it before :meth:`to`.

        Args:
            image: any image, ``[C, H, W]``.
        """
        before = {name: buffer.clone() for name, buffer in self._skeleton.named_buffers()}
        with keyed_global_state(0, "impurity"), torch.no_grad():
            state = torch.get_rng_state()
            image = image.detach().to("cpu", torch.float32)
            arguments = self.initial_parameters(0, "skeleton"), image.expand(2, *image.shape)
            first, second = (self(*arguments).nan_to_num() for _ in range(2))
            if not torch.equal(state, torch.get_rng_state()):
                return "it uses random numbers outside of torch.nn.Dropout layers"
            if not torch.equal(first, second):
                return "its logits differ between two evaluations of the same images"
        moved = (name for name, buffer in self._skeleton.named_buffers() if not torch.equal(buffer, before[name]))
        name = next(moved, None)
        return None if name is None else f"its buffer {name} changes when it is evaluated"

    def require_logits(self, image: Tensor, num_classes: int | None = None, batch: int = 2) -> None:
        """Reject a network that does not return one logit per image and class.

        Args:
            image: any image, ``[C, H, W]``.
            num_classes: required number of logits, if known.
            batch: size of the batch that is tried.

        Raises:
            ConfigurationError: it raises an exception, or the output is not ``[batch, classes]``.
        """
        name = _qualified(self.factory)
        try:
            with keyed_global_state(0, "logits"), torch.no_grad():
                images = image.detach().to("cpu", torch.float32).expand(batch, *image.shape)
                logits = self(self.initial_parameters(0, "skeleton"), images)
        except Exception as error:  # raised by user code
            remedy = _remedy(self.factory, "remedy_of_errors") or f"make it accept a batch {[batch, *image.shape]}"
            remedy += ", or choose another batch size" * (batch == 1)
            raise ConfigurationError("network", name, raised(error), remedy) from error
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        if (
            not isinstance(logits, Tensor)
            or logits.ndim != 2
            or logits.shape != (batch, num_classes or logits.shape[1])
        ):
            problem = f"it returns {found}, but logits [{batch}, {num_classes or 'classes'}] are required"
            remedy = _remedy(self.factory) or "return one tensor with a logit for each class"
            raise ConfigurationError("network", name, problem, remedy)

    def require_pure(self, image: Tensor, num_classes: int | None = None, batch: int = 2) -> None:
        """Reject a network that cannot be used as a student.

        Args:
            image: any image, ``[C, H, W]``.
            num_classes: required number of logits, if known.
            batch: size of the smallest batch that it will be trained on.

        Raises:
            ConfigurationError: the output is not ``[batch, classes]``, or depends on more than parameters and images.
        """
        self.require_logits(image, num_classes, batch)
        if impurity := self.impurity(image):
            problem = f"{impurity}, but a student must depend only on its parameters and images"
            remedy = _remedy(self.factory) or "remove that layer"
            remedy += "; dropout of torch.nn.Dropout layers is turned off in students"
            raise ConfigurationError("network", _qualified(self.factory), problem, remedy)

    def require_second_derivatives(self, image: Tensor) -> None:
        """Reject a network with a layer through whose gradient torch cannot differentiate.

        Args:
            image: any image, ``[C, H, W]``.

        Raises:
            ConfigurationError: naming the operation.
        """
        images = image.detach().to("cpu", torch.float32).expand(2, *image.shape).clone().requires_grad_()
        theta = self.initial_parameters(0, "skeleton").requires_grad_()
        (gradient,) = torch.autograd.grad(self(theta, images).square().sum(), theta, create_graph=True)
        try:
            torch.autograd.grad(gradient.sum(), images, allow_unused=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            problem = f"a student is differentiated twice, and {str(error).splitlines()[0]}"
            remedy = "choose another network, or replace that layer (nn.Hardsigmoid, for example, by nn.Sigmoid)"
            raise ConfigurationError("network", _qualified(self.factory), problem, remedy) from error

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> FunctionalNetwork:
        """Move the buffers and convert floating-point ones to ``dtype``. Parameters are arguments of every call."""
        self._skeleton.to(device, dtype)
        return self

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of ``images`` ``[N, C, H, W]`` under the parameters ``theta`` ``[P]``."""
        with mathematical_attention():
            logits: Tensor = functional_call(self._skeleton, self.unflatten(theta), (images,))
        return logits

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Split ``theta`` ``[P]`` into named tensors, which are views."""
        pieces = torch.split(theta, self.sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.layout, pieces, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`: concatenate tensors to a vector ``[P]`` in the order of the layout."""
        return torch.cat([tensors[name].reshape(-1) for name, _ in self.layout])

    def initial_parameters(self, *key: Key) -> Tensor:
        """A random initialisation ``[P]``, float32 on the CPU, that depends only on ``key``."""
        network = build_network(self.factory, *key)
        return self.flatten({name: parameter.detach() for name, parameter in network.named_parameters()})
