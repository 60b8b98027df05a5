"""Counter-based randomness: a draw depends on its key, on the whole key and on nothing but its key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_lightning.randomness import keyed_generator, keyed_global_state, keyed_seed

KEYS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4).map(tuple)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(first=KEYS, second=KEYS)
def test_seeds_are_equal_exactly_when_keys_are(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert (keyed_seed(*first) == keyed_seed(*second)) == (first == second)
    assert 0 <= keyed_seed(*first) < 2**63


def test_seeds_stay_what_they_are() -> None:
    """Stored trajectories and checkpoints were made with these numbers: a change of the scheme orphans them."""
    import hashlib

    digest = hashlib.blake2b(b"int:0\x1fstr:window\x1fint:5", digest_size=8).digest()
    assert keyed_seed(0, "window", 5) == int.from_bytes(digest, "little") // 2


def test_numbers_and_their_text_are_different_keys() -> None:
    assert keyed_seed(1) != keyed_seed("1")
    assert keyed_seed(1, 23) != keyed_seed(12, 3)
    assert keyed_seed("ab", "c") != keyed_seed("a", "bc")
    assert keyed_seed("a") != keyed_seed("a", "")


def test_neighbouring_keys_give_unrelated_draws() -> None:
    draws = torch.stack([torch.randn(2000, generator=keyed_generator(0, "window", i)) for i in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 5 / 2000**0.5  # five standard errors


def test_generator_is_fresh_each_time() -> None:
    first = torch.rand(3, generator=keyed_generator(4, "x"))
    assert torch.equal(torch.rand(3, generator=keyed_generator(4, "x")), first)
    assert keyed_generator(4, "x").device.type == "cpu"


def test_global_state_is_keyed_inside_and_put_back_outside() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    with keyed_global_state(9, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(2), wanted)
    with keyed_global_state(9, "init"):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(inside, torch.rand(3, generator=keyed_generator(9, "init")))


def test_global_state_comes_back_after_an_error() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError), keyed_global_state(0):
        torch.rand(-1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_global_state_touches_no_other_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the CPU generator's state is put back, so only that one may be seeded."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with keyed_global_state(0):
        pass
    assert seeded == []
