"""Matching loss, balance and weight perturbation against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_lightning.distillation.trajectory_matching import (
    balance_factor,
    intermediate_weight,
    matching_loss,
    matching_steps,
    perturb,
)
from ast_lightning.randomness import keyed_generator

LAYOUT = [("conv", (4, 3, 3, 3)), ("bias", (4,)), ("linear", (5, 7)), ("pointwise", (2, 4, 1, 1)), ("scale", (3,))]
SIZE = sum(math.prod(shape) for _, shape in LAYOUT)


@pytest.mark.parametrize(
    ("steps", "epochs", "intermediate", "expected"),
    [
        (20, 1, "none", {20: 1}),
        (20, 1, "aggregate", {20: 1}),
        (20, 2, "none", {20: 2}),
        (20, 2, "aggregate", {10: 1, 20: 2}),
        (20, 3, "adaptive", {6: 1, 12: 2, 20: 3}),
        (11, 3, "aggregate", {3: 1, 6: 2, 11: 3}),
        (3, 3, "aggregate", {1: 1, 2: 2, 3: 3}),
        (5, 2, "adaptive", {2: 1, 5: 2}),
    ],
)
def test_matching_steps(steps: int, epochs: int, intermediate: str, expected: dict[int, int]) -> None:
    assert matching_steps(steps, epochs, intermediate) == expected


@given(epochs=st.integers(1, 8), extra=st.integers(0, 60), intermediate=st.sampled_from(["aggregate", "adaptive"]))
@settings(derandomize=True, deadline=None)
def test_matching_steps_are_distinct_and_ascending(epochs: int, extra: int, intermediate: str) -> None:
    matched = matching_steps(epochs + extra, epochs, intermediate)
    assert list(matched.values()) == list(range(1, epochs + 1))
    assert list(matched) == sorted(matched)
    assert min(matched) >= 1
    assert max(matched) == epochs + extra


@pytest.mark.parametrize(
    ("steps", "epochs", "every", "intermediate", "expected"),
    [
        (20, 4, 2, "aggregate", {10: 2, 20: 4}),
        (20, 6, 2, "adaptive", {6: 2, 12: 4, 20: 6}),
        (20, 6, 3, "aggregate", {9: 3, 20: 6}),
        (20, 3, 3, "aggregate", {20: 3}),
        (20, 6, 2, "none", {20: 6}),
    ],
)
def test_matching_steps_of_thinned_trajectories(
    steps: int, epochs: int, every: int, intermediate: str, expected: dict[int, int]
) -> None:
    assert matching_steps(steps, epochs, intermediate, every) == expected


def test_matching_loss_of_a_thinned_trajectory_by_hand() -> None:
    targets = torch.tensor([[2.0, 0.0], [0.0, 4.0], [3.0, 4.0]])  # after 2, 4 and 6 epochs
    steps = matching_steps(7, 6, "adaptive", 2)
    assert steps == {2: 2, 4: 4, 7: 6}
    students = {2: torch.tensor([1.0, 1.0]), 4: torch.tensor([1.0, 4.0]), 7: torch.tensor([3.0, 0.0])}
    loss = matching_loss(students, steps, torch.zeros(2), targets, "adaptive")
    wanted = {2: 2 / 6 * 2 / 4, 4: 4 / 6 * 1 / 16, 6: 16 / 25}
    assert {offset: float(part) for offset, part in loss.parts.items()} == pytest.approx(wanted)
    last = matching_loss({7: students[7]}, {7: 6}, torch.zeros(2), targets, "none")
    assert float(last.total) == pytest.approx(16 / 25)


def test_intermediate_weight() -> None:
    assert [intermediate_weight(offset, 3, "adaptive") for offset in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [intermediate_weight(offset, 3, "aggregate") for offset in (1, 2, 3)] == [1, 1, 1]
    assert intermediate_weight(2, 2, "none") == 1
    assert intermediate_weight(1, 1, "adaptive") == 1


@pytest.mark.parametrize(
    ("epochs", "intermediate", "expected"),
    [
        # start (0, 0); targets (2, 0), (0, 4), (3, 4), denominators 4, 16, 25
        # students (1, 1), (1, 4), (3, 0): squared distances 2, 1, 16, or to the last target of a shorter window
        (1, "aggregate", {1: 2 / 4}),
        (1, "none", {1: 2 / 4}),
        (2, "aggregate", {1: 2 / 4, 2: 1 / 16}),
        (2, "adaptive", {1: 0.5 * 2 / 4, 2: 1 / 16}),
        (2, "none", {2: 1 / 16}),
        (3, "aggregate", {1: 2 / 4, 2: 1 / 16, 3: 16 / 25}),
        (3, "adaptive", {1: 2 / 4 / 3, 2: 2 * 1 / 16 / 3, 3: 16 / 25}),
        (3, "none", {3: 16 / 25}),
    ],
)
def test_matching_loss_by_hand(epochs: int, intermediate: str, expected: dict[int, float]) -> None:
    start = torch.zeros(2)
    targets = torch.tensor([[2.0, 0.0], [0.0, 4.0], [3.0, 4.0]])[:epochs]
    students = {1: torch.tensor([1.0, 1.0]), 2: torch.tensor([1.0, 4.0]), 3: torch.tensor([3.0, 0.0])}
    steps = matching_steps(7, epochs, intermediate)
    matched = {step: students[offset].clone().requires_grad_() for step, offset in steps.items()}

    loss = matching_loss(matched, steps, start, targets, intermediate)

    assert {offset: float(part) for offset, part in loss.parts.items()} == pytest.approx(expected)
    assert float(loss.total.detach()) == pytest.approx(sum(expected.values()))
    loss.total.backward()
    for step, offset in steps.items():
        beta = offset / epochs if intermediate == "adaptive" else 1.0
        target = targets[offset - 1]
        gradient = beta * 2 * (students[offset] - target) / target.square().sum()
        torch.testing.assert_close(matched[step].grad, gradient)
    assert not any(part.requires_grad for part in loss.parts.values())


def test_denominator_starts_at_the_given_start() -> None:
    targets = torch.tensor([[0.0, 0.0]])
    student = {4: torch.tensor([1.0, 0.0])}
    near = matching_loss(student, {4: 1}, torch.tensor([1.0, 0.0]), targets, "none").total
    far = matching_loss(student, {4: 1}, torch.tensor([0.0, 10.0]), targets, "none").total
    assert (float(near), float(far)) == pytest.approx((1.0, 0.01))


@pytest.mark.parametrize("bound", [20, 15, 1])
def test_balance_factor_is_the_formula(bound: int) -> None:
    half = bound // 2
    factors = [balance_factor(start, bound) for start in range(bound)]
    for start, factor in enumerate(factors):
        gap = abs(start - half) + 8
        assert math.log(5) * (factor if start >= half else 1 / factor) == pytest.approx(math.log(gap))
    assert factors[half] == pytest.approx(math.log(8) / math.log(5))
    assert factors == sorted(factors)
    assert all(factor < 1 for factor in factors[:half])
    assert all(factor > 1 for factor in factors[half:])


def test_balance_factor_of_known_points() -> None:
    # log₅ 25 = 2 at 17 epochs past the half, log₅ 8 at the half, 1 / log₅ 9 just below
    assert balance_factor(37, 40) == pytest.approx(2.0)
    assert balance_factor(20, 40) == pytest.approx(1.2920296742)
    assert balance_factor(19, 40) == pytest.approx(0.7324867604)
    assert balance_factor(3, 40) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_perturbation_recovers_unit_directions(scale: float) -> None:
    theta = torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = theta.clone()
    moved = perturb(theta, LAYOUT, scale, keyed_generator(1))
    assert torch.equal(theta, before)
    assert moved.shape == theta.shape

    directions = []
    sizes = [math.prod(shape) for _, shape in LAYOUT]
    for (_, shape), old, new in zip(LAYOUT, theta.split(sizes), moved.split(sizes), strict=True):
        if len(shape) == 4:
            directions.append((new - old) / (scale * old))
            assert float(directions[-1].norm()) == pytest.approx(1.0, abs=1e-5)
            assert directions[-1].min() < 0 < directions[-1].max()
        else:
            assert torch.equal(old, new)
    assert len(directions) == 2
    # a direction of its own for each tensor, and the same one whatever the scale
    assert not torch.allclose(directions[0][:8], directions[1])
    assert torch.equal(moved, perturb(theta, LAYOUT, scale, keyed_generator(1)))
    assert not torch.allclose(moved, perturb(theta, LAYOUT, scale, keyed_generator(2)))


def test_directions_are_gaussian() -> None:
    """‖d‖_F = 1 holds for other laws as well; the spread of d · √n tells N(0, 1) from U or ±1."""
    theta = torch.ones(64 * 64 * 9)
    draws = (perturb(theta, [("conv", (64, 64, 3, 3))], 1.0, keyed_generator(3)) - 1) * math.sqrt(len(theta))
    assert float(draws.mean()) == pytest.approx(0, abs=0.02)
    assert float(draws.pow(4).mean()) == pytest.approx(3, abs=0.15)


def test_no_perturbation_is_the_identity() -> None:
    theta = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(perturb(theta, LAYOUT, 0.0, keyed_generator(1)), theta)
    only_vectors = [("bias", (SIZE,))]
    assert torch.equal(perturb(theta, only_vectors, 1.0, keyed_generator(1)), theta)
