"""Counter-based randomness: every draw has a generator of its own, named by what the draw is for.

A draw keyed by (seed, purpose, iteration, …) does not depend on which draws came before it. So a resumed run, a run on
another number of devices, and expert 17 trained alone all see the same numbers, and there is no global state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = int | str


def keyed_seed(*key: Key) -> int:
    """A 63-bit seed that depends on the whole key and on nothing else.

    >>> keyed_seed(0, "window", 5) == keyed_seed(0, "window", 5)
    True
    >>> keyed_seed(0, "window", 5) == keyed_seed(0, "window", 6)
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded with :func:`keyed_seed`."""
    return torch.Generator().manual_seed(keyed_seed(*key))


@contextmanager
def keyed_global_state(*key: Key) -> Iterator[None]:
    """Seed torch's global CPU generator, and no other, inside the block; put its state back afterwards.

    For code that takes no generator, such as the initialisation of a module's parameters.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(keyed_seed(*key))
        yield
    finally:
        generator.set_state(state)
