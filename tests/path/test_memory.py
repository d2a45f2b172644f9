"""What opening a run and moving along its path takes in memory, in copies of the base."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

import pytest

from tests.bench.memory import ROWS, in_process, make_runs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHAPE = Namespace(layers=40, width=1024, vocabulary=2_000, dtype="bfloat16", device="cpu")
"""1 GB: its largest matrix is 1% of it in fp32, so a layer's scratch stays within the budgets."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Path]]:
    """Bytes of the base, and a run of each kind."""
    base, found = make_runs(tmp_path_factory.mktemp("memory"), SHAPE)
    return sum(path.stat().st_size for path in base.glob("*.safetensors")), found


@pytest.mark.parametrize(
    ("row", "budget"),
    [
        ("attached lora", 1.2),
        ("merged lora", 2.2),
        ("lora on the line", 2.2),
        ("oft on the line", 2.2),
        ("whole models", 3.2),
        ("whole models, ends mapped", 1.2),
        ("export of an adapter", 1.2),
        ("export of a whole model", 3.2),
    ],
)
def test_memory_stays_within_its_budget(
    row: str, budget: float, runs: tuple[int, dict[str, Path]]
) -> None:
    size, by_kind = runs
    kind, given = ROWS[row]
    opening, _, moving = in_process(by_kind[kind], given)
    assert max(opening, moving) / size <= budget
