"""Checksums tell every change from the original, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from ast_lightning.storage.checksums import Damaged, seal, tensor_checksum, unseal

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -2.0]), "steps": torch.tensor(7)}


def test_the_order_of_tensors_does_not_matter() -> None:
    assert tensor_checksum(dict(reversed(TENSORS.items()))) == tensor_checksum(TENSORS)
    assert tensor_checksum({"a": torch.zeros(4, 4).T[:2]}) == tensor_checksum({"a": torch.zeros(2, 4)})


def test_every_bit_matters() -> None:
    seen = {tensor_checksum(TENSORS)}
    for bit in range(6 * 32):
        changed = TENSORS["weight"].clone()
        changed.view(torch.int32).view(-1)[bit // 32] ^= torch.tensor(1 << bit % 32).to(torch.int32)
        seen.add(tensor_checksum({**TENSORS, "weight": changed}))
    assert len(seen) == 6 * 32 + 1


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "weight": TENSORS["weight"].view(3, 2)},
        {**TENSORS, "weight": TENSORS["weight"].view(torch.int32)},
        {"wight" if name == "weight" else name: tensor for name, tensor in TENSORS.items()},
        {name: tensor for name, tensor in TENSORS.items() if name != "steps"},
    ],
    ids=["shape", "type", "name", "missing"],
)
def test_the_description_matters(changed: dict[str, torch.Tensor]) -> None:
    assert tensor_checksum(changed) != tensor_checksum(TENSORS)


def test_what_tensors_belong_to_matters() -> None:
    third = tensor_checksum(TENSORS, {"expert": "3", "epoch": "1"})
    assert third == tensor_checksum(TENSORS, {"epoch": "1", "expert": "3"})
    assert len({third, tensor_checksum(TENSORS, {"expert": "1", "epoch": "3"}), tensor_checksum(TENSORS)}) == 3


def test_sealed_content_survives_json() -> None:
    content = {"name": "é", "numbers": [1, 2.5, None], "nested": {"b": 1, "a": True}}
    assert unseal(json.loads(json.dumps(seal(content), indent=7))) == content
    assert seal(seal(content)) == seal(content)


@pytest.mark.parametrize("damage", [{"name": "e"}, {"numbers": [1, 2]}, {"more": 1}, {"checksum": "0" * 32}])
def test_changed_content_is_found(damage: dict[str, object]) -> None:
    content = seal({"name": "é", "numbers": [1, 2.5, None]})
    with pytest.raises(Damaged, match="does not match its checksum"):
        unseal({**content, **damage})


@pytest.mark.parametrize("content", [{"name": 1}, [], None, {"checksum": 5}])
def test_unsealed_content_is_found(content: object) -> None:
    with pytest.raises(Damaged, match="no checksum"):
        unseal(content)
