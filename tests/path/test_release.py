"""A placement that nobody holds frees its model at once, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import make_base, make_full_run, make_peft_run
from tests.path.tuners import configs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("full", {}),
        ("lora", {"form": "attached"}),
        ("lora", {"form": "merged"}),
        ("lora", {"form": "merged", "curve": "line"}),
        ("oft", {"form": "attached"}),
    ],
)
def test_the_model_goes_with_its_placement(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    run = (
        make_full_run(tmp_path / "run", base)
        if name == "full"
        else make_peft_run(tmp_path / "run", base, configs()[name])
    )
    placement = Placement(run, **given)
    placement.place(Point(step=10, alpha=0.4))
    weights = weakref.ref(placement.model.get_input_embeddings().weight)
    gc.collect()
    gc.disable()
    try:
        del placement
        assert weights() is None
    finally:
        gc.enable()
