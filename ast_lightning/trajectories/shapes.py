"""What the shapes of a stranger's parameters tell of the network that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int, ...]


def hint(found: Sequence[Shape], expected: Sequence[Shape]) -> str:
    """Which options would make the expected network the one that was found; empty where that cannot be told.

    Args:
        found, expected: shapes in the order of ``parameters()``, of networks of convolutions and linear layers.

    >>> hint([(64, 3, 3, 3), (64,), (10, 64), (10,)], [(128, 3, 3, 3), (128,), (10, 128), (10,)])
    'set network.width=64'
    """
    theirs, ours = ([shape for shape in shapes if len(shape) == 4] for shapes in (found, expected))
    if not theirs or not ours or len(found[-1]) != 1 or len(found[-2]) != 2:
        return ""
    said = []
    if len(theirs) != len(ours):
        said.append(f"set network.depth={len(theirs)}")
    if theirs[0][0] != ours[0][0]:
        said.append(f"set network.width={theirs[0][0]}")
    if theirs[0][1] != ours[0][1]:
        said.append(f"choose data of {theirs[0][1]} channels")
    if found[-1] != expected[-1]:
        said.append(f"choose data of {found[-1][0]} classes")
    their_norms, our_norms = (_has_norms(found), _has_norms(expected))
    if their_norms != our_norms:
        said.append(f"set network.normalization={'instance' if their_norms else 'none'}")
    if not said and found[-2] != expected[-2]:
        said.append(f"choose the data.image_size or network.pooling that leads to {found[-2][1]} features")
    return ", ".join(said)


def _has_norms(shapes: Sequence[Shape]) -> bool:
    """Whether there are more vectors than the biases of convolutions and linear layers."""
    vectors = sum(len(shape) == 1 for shape in shapes)
    return vectors > len(shapes) - vectors
