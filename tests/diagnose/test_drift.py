"""Drift: known updates on known inputs, agreement with NumPy, sums in place of rows."""

from __future__ import annotations

import pytest
import torch

from backtrack.diagnose.drift import Moments, drift
from tests.diagnose import independent


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moments_of(rows: torch.Tensor, size: int = 7) -> Moments:
    moments = Moments()
    for start in range(0, len(rows), size):
        moments.add(rows[start : start + size])
    return moments


def test_drift_of_a_known_update_on_known_inputs():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    update = torch.tensor([[3.0, 0.0]])
    found = drift(moments_of(rows), torch.tensor([[0.0, 1.0]]), update)
    assert found.absolute == pytest.approx(9 / 2)
    assert found.relative == pytest.approx((9 / 2) / (4 / 2))
    assert found.update_normed == pytest.approx((9 / 2) / (9 * 5 / 2))
    assert found.num_tokens == 2


def test_inputs_orthogonal_to_an_update_do_not_drift():
    rows = random(30, 8)
    rows[:, 3] = 0
    update = torch.zeros(5, 8)
    update[:, 3] = 10.0
    assert drift(moments_of(rows), random(5, 8), update).absolute == 0


@pytest.mark.parametrize("num_rows", [5, 200])
def test_drift_agrees_with_numpy_by_rows_and_by_sums(num_rows):
    base, update, rows = random(20, 32), 0.1 * random(20, 32, seed=1), random(num_rows, 32, seed=2)
    moments = moments_of(rows)
    assert moments.is_summed == (num_rows > 32), "memory is bounded by the module's size"
    found = drift(moments, base, update)
    expected = independent.drift(base.numpy(), (base + update).numpy(), rows.numpy())
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4), name
