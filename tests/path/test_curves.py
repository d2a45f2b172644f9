"""The line and the turn of Householder vectors, on tensors with known answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backtrack.path.backends.line_mixture import LineMixture
from backtrack.path.curves import angles, line, turn
from backtrack.path.models.loading import moving_weights
from backtrack.point import Point


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


def test_nothing_is_between_integers_and_they_are_the_tuned_ones_from_the_base_on() -> None:
    base, tuned = torch.tensor([3, 1 << 40]), torch.tensor([8, 5])
    out = torch.empty_like(base)
    for alpha, expected in ((0.0, base), (0.01, tuned), (0.5, tuned), (1.0, tuned), (1.5, tuned)):
        line(base, tuned, alpha, out=out)
        assert torch.equal(out, expected)


def test_a_buffer_of_integers_moves_with_the_weights_and_has_no_distance() -> None:
    model: Any = torch.nn.BatchNorm1d(2)
    live = moving_weights(model)
    tuned = {name: tensor.detach() + 3 for name, tensor in live.items()}
    mixture = LineMixture(live, "device", lambda _step: tuned)
    assert mixture.distance(Point(step=10), {}) == pytest.approx(3 * 8**0.5)
    for alpha, expected in ((0.5, 3), (1.0, 3), (0.0, 0)):
        with torch.no_grad():
            mixture.write(Point(step=10, alpha=alpha) if alpha else Point.base(), {})
        assert int(model.num_batches_tracked) == expected


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
