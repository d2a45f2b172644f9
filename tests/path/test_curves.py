"""The line and the turn of Householder vectors, on tensors with known answers."""

from __future__ import annotations

import pytest
import torch

from backtrack.path.curves import angles, line, turn


def test_ends_of_different_types_are_mixed_in_fp32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, columns := 1_100_000, generator=generator).bfloat16()
    tuned = base.float() + 0.01 * torch.randn(3, columns, generator=generator)
    out = torch.empty_like(base)
    line(base, tuned, 0.3, out=out)
    exact = torch.lerp(base.float(), tuned, 0.3)
    assert torch.equal(out, exact.bfloat16())
    line(base, tuned, 1.0, out=out)
    assert torch.equal(out, tuned.bfloat16())


def test_the_line_is_computed_in_fp32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4096, generator=generator).bfloat16()
    tuned = (base.float() + 0.01 * torch.randn(4096, generator=generator)).bfloat16()
    out = torch.empty_like(base)
    line(base, tuned, 0.3, out=out)
    exact = base.double() + 0.3 * (tuned.double() - base.double())
    assert torch.equal(out, exact.float().bfloat16())


def test_half_a_rotation_by_reflections_is_half_its_angle() -> None:
    trained = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    out = torch.empty_like(trained)
    turn(trained, 0.25, out=out)  # the root of a quarter is a half
    assert angles(trained).item() == pytest.approx(torch.pi / 2)
    assert angles(out).item() == pytest.approx(torch.pi / 4)
    assert out[:, 1].norm().item() == pytest.approx(2.0)


def test_vectors_turn_towards_the_nearer_of_two_equal_reflections() -> None:
    trained = torch.tensor([[1.0, -1.0], [0.0, 0.1]])  # almost opposite: the same reflection
    out = torch.empty_like(trained)
    turn(trained, 0.5, out=out)
    assert angles(out).item() < angles(trained).item() < 0.2
