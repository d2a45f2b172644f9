"""Each shape of a checkpoint folder is exact or refused in words; see `tests/bench/shapes.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.shape_cases import all_shapes
from tests.bench.shapes import measured

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("gpt2, LoRA", "whole, in shards", "LoRA, a layer missing in step 10", "whole, pickled")
"""Shapes of every test run; the others take some minutes together."""


@pytest.mark.parametrize("name", QUICK)
def test_a_shape_is_exact_or_refused(name: str, tmp_path: Path) -> None:
    row = measured(all_shapes()[name](tmp_path), tmp_path)
    assert not row.is_wrong, row.cells


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(all_shapes()) - set(QUICK)))
def test_every_other_shape_is_exact_or_refused(name: str, tmp_path: Path) -> None:
    row = measured(all_shapes()[name](tmp_path), tmp_path)
    assert not row.is_wrong, row.cells
