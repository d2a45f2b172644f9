"""What opening a run and moving along its path takes in memory, in copies of the base."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

import pytest

from tests.bench.memory import ROWS, in_process, make_runs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHAPE = Namespace(layers=12, width=1024, vocabulary=2_000, dtype="bfloat16", device="cpu")
"""0.3 GB; a layer's largest matrix in fp32 is 4% of it."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Path]]:
    """Bytes of the base, and a run of each kind."""
    base, found = make_runs(tmp_path_factory.mktemp("memory"), SHAPE)
    return sum(path.stat().st_size for path in base.glob("*.safetensors")), found


@pytest.mark.parametrize(
    ("row", "budget"),
    [
        ("attached lora", 1.3),
        ("merged lora", 2.1),
        ("lora on the line", 2.1),
        ("oft on the line", 2.1),
        ("whole models", 3.1),
    ],
)
def test_memory_stays_within_its_budget(
    row: str, budget: float, runs: tuple[int, dict[str, Path]]
) -> None:
    size, by_kind = runs
    kind, given = ROWS[row]
    opening, _, moving = in_process(by_kind[kind], given)
    assert max(opening, moving) / size <= budget
