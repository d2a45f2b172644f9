"""Scales of objectives: what a recipe must say so that scores can be weighed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from backtrack.recipe import ObjectiveSection
from backtrack.recipe.objectives import Objective
from backtrack.records import Axis

FUNCTION = {"kind": "python", "role": "target", "function": "mine:score", "items": 3}
TASK = {"kind": "lm_eval", "role": "target", "task": "mine", "metric": "bleu"}


def section(given: dict[str, Any], **changes: Any) -> ObjectiveSection:
    found: ObjectiveSection = TypeAdapter(Objective).validate_python(given | changes)
    return found


@pytest.mark.parametrize("given", [FUNCTION, TASK], ids=["function", "task"])
def test_a_unit_without_a_scale_needs_a_range(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"'BLEU' have no scale .*range: \[worst, best\]"):
        section(given, unit="BLEU")
    assert section(given, unit="BLEU", range=[20, 40]).info("").range == (20, 40)


@pytest.mark.parametrize("unit", ["nats a token", "bits a byte"])
def test_a_loss_has_a_scale_of_its_own_if_less_of_it_is_better(unit: str) -> None:
    found = section(FUNCTION, unit=unit, direction="minimize")
    assert found.info("").range is None
    with pytest.raises(ValidationError, match="no scale"):
        section(FUNCTION, unit=unit)


def test_a_range_runs_from_worst_to_best() -> None:
    with pytest.raises(ValidationError, match=r"\[40.0, 20.0\] must run from .* more is better"):
        section(FUNCTION, unit="BLEU", range=[40, 20])
    with pytest.raises(ValidationError, match="less is better"):
        section({"kind": "text", "role": "general", "path": "prose.txt"}, range=[1.0, 2.0])
    with pytest.raises(ValidationError, match="worst score to the best"):
        section(FUNCTION, unit="BLEU", range=[20, 20])


def test_each_kind_says_its_unit() -> None:
    examples = {"kind": "examples", "role": "target", "path": "items.jsonl"}
    text = {"kind": "text", "role": "general", "path": "prose.txt"}
    loss = Axis(unit="nats a token", direction="minimize")
    assert section(examples).axis == Axis(unit="fraction", direction="maximize")
    assert section(examples, score="nll").axis == loss
    assert section(text).axis == Axis(unit="bits a byte", direction="minimize")
