"""Counter-based randomness: each draw has its own generator, which is seeded by a key that describes the draw.

A draw keyed by (seed, purpose, iteration, …) does not depend on earlier draws. Therefore a resumed run, a run on
another number of devices and a single expert trained alone use the same random numbers. There is no global state to
save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = int | str


def keyed_seed(*key: Key) -> int:
    """A 63-bit seed that depends only on the key.

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
    """Seed torch's global CPU generator inside the block, and restore its state afterwards.

    Use it for code that takes no generator, such as the initialisation of a module's parameters. Other generators are
    not changed.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(keyed_seed(*key))
        yield
    finally:
        generator.set_state(state)
