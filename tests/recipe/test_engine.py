"""The engine's section: what is set where, and what is refused before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from backtrack.errors import RecipeError
from backtrack.recipe import (
    EngineSection,
    ObjectiveSection,
    Recipe,
    TransformersSection,
    VllmSection,
    load_recipe,
)
from backtrack.recipe.kinds import _subclasses

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.recipe.kinds import KindSection

GREEDY = {"kind": "examples", "role": "target", "path": "items.jsonl"}
SAMPLED = {**GREEDY, "sampling": {}}
FUNCTION = {"kind": "python", "role": "target", "function": "mine:score"}


def read(folder: Path, target: dict[str, Any], **changes: Any) -> Recipe:
    path = folder / "recipe.yaml"
    general = {"kind": "text", "role": "general", "path": "prose.txt"}
    raw = {"name": "mine", "base": "some/model", "objectives": [target, general], **changes}
    path.write_text(yaml.safe_dump(raw))
    return load_recipe(path)


def test_transformers_answers_unless_vllm_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, GREEDY).engine == TransformersSection()
    assert read(tmp_path, GREEDY, engine="vllm").engine == VllmSection(kind="vllm")


def test_sixteen_answers_at_the_papers_temperature_where_sampling_is_asked_for(
    tmp_path: Path,
) -> None:
    sampling: Any = read(tmp_path, SAMPLED).objectives[0]
    assert (sampling.sampling.samples, sampling.sampling.temperature) == (16, 0.6)


def test_how_much_is_done_at_a_time_decides_no_score() -> None:
    plain = VllmSection(kind="vllm").decisive
    assert VllmSection(kind="vllm", memory_share=0.5, max_loras=2).decisive == plain
    assert VllmSection(kind="vllm", llm={"quantization": "fp8"}).decisive != plain


@pytest.mark.parametrize(
    ("target", "changes", "said"),
    [
        (GREEDY, {"engine": "vlm"}, "engine.kind: must be one of transformers, vllm."),
        (GREEDY, {"engine": {"kind": "vllm", "max_lora": 1}}, "Did you mean 'max_loras'?"),
        (GREEDY, {"engine": {"kind": "vllm", "memory_share": 1.5}}, "less than or equal to 1"),
        (GREEDY, {"engine": {"kind": "vllm", "llm": {"dtype": "half"}}}, "by `engine.dtype`"),
        (GREEDY, {"engine": {"kind": "vllm", "llm": {"enable_lora": True}}}, "leave it out"),
        ({**SAMPLED, "score": "nll"}, {"engine": "vllm"}, "there is none to sample"),
        (FUNCTION, {"engine": "vllm"}, "'score' calls the torch model"),
        (
            GREEDY,
            {"engine": "vllm", "base": {"model": "some/model", "quantization": "4bit"}},
            "does not serve a base that bitsandbytes quantizes",
        ),
    ],
)  # fmt: skip
def test_what_an_engine_does_not_do_is_refused_by_name(
    tmp_path: Path, target: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, target, **changes)
    assert said in str(caught.value)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("base", [ObjectiveSection, EngineSection])
def test_every_kind_names_a_class_that_exists(base: type[KindSection]) -> None:
    found = list(_subclasses(base))
    assert len(found) >= 2
    for section in found:
        assert callable(section.load_implementation()), section
