"""What other libraries leave is exact or refused in words; see `run.py` for the table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.shapes import measured
from tests.real_libraries.merge import merged
from tests.real_libraries.run import REQUIREMENTS, trained

ENVIRONMENTS = os.environ.get("BACKTRACK_ENVIRONMENTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        ENVIRONMENTS is None,
        reason="needs environments of some GB: name their folder in BACKTRACK_ENVIRONMENTS",
    ),
]


@pytest.mark.parametrize("library", REQUIREMENTS)
def test_what_a_library_leaves_is_exact_or_refused(library: str, tmp_path: Path) -> None:
    shapes = trained(library, Path(ENVIRONMENTS or ""), tmp_path / library)
    assert shapes
    for name, make in shapes.items():
        folder = tmp_path / name.replace("/", " ")
        folder.mkdir()
        row = measured(make(folder), folder)
        assert not row.is_wrong, (name, row.cells)


def test_mergekit_makes_of_a_front_s_configuration_what_we_export(tmp_path: Path) -> None:
    rows = merged(Path(ENVIRONMENTS or ""), tmp_path)
    assert len(rows) >= 2
    for row in rows:
        assert max(row.ours, row.theirs) <= 0.501
        assert row.num_differing <= row.num_values / 10_000
