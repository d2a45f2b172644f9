"""Geometry of outputs: invariances, agreement with NumPy and SciPy, rows in place of sums."""

from __future__ import annotations

import pytest
import torch

from backtrack.diagnose import activations as module
from backtrack.diagnose.activations import Pairs
from backtrack.records.diagnosis import ActivationGeometry
from tests.diagnose import independent


def outputs(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    found: torch.Tensor = torch.randn(rows, width, generator=generator) @ mixing + 0.3
    return found


def rotation(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    found: torch.Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return found


def compared(start: torch.Tensor, *ends: torch.Tensor, size: int = 50) -> list[ActivationGeometry]:
    pairs = Pairs(len(ends))
    for at in range(0, len(start), size):
        pairs.add(start[at : at + size], [end[at : at + size] for end in ends])
    return pairs.geometry()


@pytest.mark.parametrize("num_rows", [20, 400])
def test_a_rotation_preserves_the_geometry_and_changes_the_vectors(num_rows):
    start = outputs(num_rows, 64)
    found = compared(start, start @ rotation(64))[0]
    assert found.procrustes < 1e-6
    assert found.gram < 1e-6
    assert found.cka == pytest.approx(1, abs=1e-9)
    assert found.norm_drift < 1e-6
    assert found.cosine_drift > 0.5
    assert found.subspace_distance > 0.5


def test_doubling_preserves_directions_and_has_a_procrustes_residual_of_one():
    start = outputs(300, 48)
    found = compared(start, 2 * start)[0]
    assert found.procrustes == pytest.approx(1)
    assert found.norm_drift == pytest.approx(1)
    assert found.gram == pytest.approx(0, abs=1e-9)
    assert found.cosine_drift == pytest.approx(0, abs=1e-9)
    assert found.cka == pytest.approx(1)
    assert found.subspace_distance == pytest.approx(0, abs=1e-6)


def test_equal_outputs_have_no_distortion():
    start = outputs(300, 48)
    found = compared(start, start.clone())[0]
    assert found.procrustes < 1e-7
    assert (found.gram, found.cosine_drift, found.norm_drift) == (0, 0, 0)


@pytest.mark.parametrize("amount", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("num_rows", [30, 500])
def test_geometry_agrees_with_numpy_and_scipy(num_rows, amount):
    start, end = outputs(num_rows, 96), outputs(num_rows, 96, seed=3)
    near = start + amount * end
    found = compared(start, near)[0]
    expected = independent.geometry(start.numpy(), near.numpy())
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5, abs=1e-11), name
    assert found.num_tokens == num_rows


def test_sums_in_fp32_agree_too(monkeypatch):
    monkeypatch.setattr(module, "MAX_FP64_FEATURES", 0)
    start = outputs(500, 96)
    for amount in (1e-3, 0.3):
        near = start + amount * outputs(500, 96, seed=3)
        found = compared(start, near)[0]
        for name, value in independent.geometry(start.numpy(), near.numpy()).items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-2, abs=1e-6), name


def test_several_points_are_compared_together():
    start = outputs(200, 40)
    ends = [start @ rotation(40), start + 0.1 * outputs(200, 40, seed=5)]
    together = compared(start, *ends)
    assert together == [compared(start, end)[0] for end in ends]


def test_rows_are_not_stored_once_sums_are_smaller():
    pairs = Pairs(1)
    for seed in range(10):
        rows = outputs(16, 32, seed)
        pairs.add(rows, [rows])
    assert pairs._rows is None
    assert pairs.num_rows == 160
