"""Profiles and effective rank: closed forms, SciPy, error bounds of the randomized mode."""

from __future__ import annotations

import pytest
import torch

from backtrack.diagnose import spectrum as module
from backtrack.diagnose.spectrum import (
    deviation,
    directions,
    effective_rank,
    fluctuation,
    singular_values,
    spectrum,
    stable_rank,
)
from tests.diagnose import independent


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decaying(rows: int, columns: int, power: float, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall by a power of their index."""
    left = torch.linalg.qr(random(rows, min(rows, columns), seed=seed)).Q
    right = torch.linalg.qr(random(columns, min(rows, columns), seed=seed + 1)).Q
    found: torch.Tensor = left * torch.arange(1, left.shape[1] + 1).float() ** -power @ right.T
    return found


@pytest.mark.parametrize("mode", ["exact", "randomized"])
@pytest.mark.parametrize("rank", [1, 7])
def test_an_update_of_equal_singular_values_has_its_rank(mode, rank):
    update = decaying(300, 200, 0.0)
    left, _, right = torch.linalg.svd(update, full_matrices=False)
    low = left[:, :rank] @ right[:rank]
    assert effective_rank(singular_values(low, mode)) == pytest.approx((rank,) * 3, rel=1e-4)


def test_no_update_has_no_rank_and_flat_profiles():
    found = spectrum(directions(random(40, 30), "exact"), torch.zeros(40, 30))
    assert found.effective_rank == 0
    assert found.retention_fluctuation == found.adaptation_fluctuation == 0
    assert not any(found.retention + found.adaptation)


def test_profiles_of_a_scaled_weight_are_its_singular_values():
    weight = random(50, 80)
    values = torch.linalg.svdvals(weight)
    found = spectrum(directions(weight, "exact"), 0.1 * weight)
    expected = (0.1 * values / values.sum()).tolist()
    assert found.retention == pytest.approx(expected, rel=1e-4)
    assert found.adaptation == pytest.approx((0.1 * values / values[0]).tolist(), rel=1e-4)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_exact_profiles_agree_with_scipy(shape):
    base, update = random(*shape), 0.05 * random(*shape, seed=1)
    found = spectrum(directions(base, "exact"), update)
    expected = independent.spectrum(base.numpy(), (base + update).numpy())
    for name in ("effective_rank", "stable_rank", "retention_deviation", "adaptation_deviation"):
        assert getattr(found, name) == pytest.approx(float(expected[name]), rel=1e-4), name
    for name in ("retention", "adaptation"):
        assert getattr(found, name) == pytest.approx(expected[name].tolist(), rel=1e-2, abs=1e-7)


def test_the_randomized_mode_bounds_its_error():
    weight = decaying(700, 500, 0.5)
    exact, rough = directions(weight, "exact"), directions(weight, "randomized")
    assert rough.mode == "randomized"
    assert len(rough.values) == module.NUM_DIRECTIONS
    off = (rough.values - exact.values[: len(rough.values)]).abs().max() / exact.values[0]
    assert 0 < float(off) <= rough.error < 0.01
    assert rough.total == pytest.approx(exact.total, rel=1e-5)


def test_the_effective_rank_lies_between_its_bounds():
    for power in (0.0, 0.3, 1.0, 2.0):
        update = decaying(600, 400, power)
        (exact, _, _), (_, low, high) = (
            effective_rank(singular_values(update, mode)) for mode in ("exact", "randomized")
        )
        assert low - 1e-3 * exact <= exact <= high + 1e-3 * exact


def test_fluctuation_tells_smooth_from_spiky_at_any_scale():
    smooth = torch.logspace(0, -3, 200)
    spiky = smooth * torch.where(torch.arange(200) % 2 == 0, 1.0, 0.1)
    assert fluctuation(torch.ones(50)) == 0
    assert fluctuation(smooth) == pytest.approx(3 / 199, rel=1e-4)
    assert fluctuation(spiky) > 50 * fluctuation(smooth)
    assert fluctuation(1e-6 * spiky) == pytest.approx(fluctuation(spiky), rel=1e-5)
    normal = fluctuation(random(20_000).abs())
    assert normal == pytest.approx(0.51, abs=0.02), "as the docstring says"


def test_recorded_directions_are_limited_and_include_the_first():
    for count in (129, 3584):
        shown = module._shown(count)
        assert len(shown) <= module.NUM_SHOWN
        assert shown == sorted(set(shown))
        assert shown[:64] == list(range(64))
        assert shown[-1] == count - 1


def test_the_stable_rank_is_known_from_the_leading_values_and_the_norm():
    update = decaying(400, 300, 0.5)
    exact, randomized = (stable_rank(singular_values(update, m)) for m in ("exact", "randomized"))
    assert exact == pytest.approx(sum(1 / i for i in range(1, 301)), rel=1e-4)
    assert randomized == pytest.approx(exact, rel=1e-4)
    assert stable_rank(singular_values(torch.zeros(40, 30), "exact")) == 0


def test_deviation_is_the_distance_from_a_moving_average_of_five():
    """As the release's own function gives them, run on these profiles."""
    assert deviation(torch.arange(50.0)) == pytest.approx(0.064, abs=1e-6)
    spike = torch.zeros(21)
    spike[10] = 1
    assert deviation(spike) == pytest.approx((0.8 + 4 * 0.2) / 21)
    assert deviation(torch.ones(4)) == 0
