"""Building objectives from a recipe."""

from __future__ import annotations

import subprocess
import sys

from backtrack.evaluate.build import build_objectives
from backtrack.records.setting import setting_digest


def test_objectives_come_in_the_recipes_order_with_name_role_and_weight(
    recipe_of, jsonl, tokenizer
):
    path = jsonl([{"prompt": "a", "completion": "the cat sat on the mat " * 9}] * 3)
    recipe = recipe_of(
        {"kind": "examples", "path": path, "score": "nll", "weight": 2.0},
        {"kind": "text", "path": path, "field": "completion", "window_tokens": 8, "name": "prose"},
    )
    infos = [objective.info for objective in build_objectives(recipe, tokenizer)]
    assert [(i.name, i.role, i.kind, i.weight) for i in infos] == [
        ("items", "target", "examples", 2.0),
        ("prose", "general", "text", 1.0),
    ]


def test_another_engine_is_another_setting_of_the_same_objective(recipe_of, jsonl, tokenizer):
    path = jsonl([{"prompt": "a", "completion": "the cat"}] * 3)
    recipe = recipe_of({"kind": "examples", "path": path})

    def digest(**engine: object) -> str:
        changed = recipe.model_validate({**recipe.model_dump(), "engine": engine})
        fingerprint = build_objectives(changed, tokenizer)[0].info.fingerprint
        return setting_digest("base", "attached", "native", changed.engine.decisive, fingerprint)

    plain = digest(kind="vllm")
    assert digest(kind="transformers") != plain != digest(kind="vllm", dtype="float16")
    assert plain == digest(kind="vllm", memory_share=0.2, max_loras=3)


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, backtrack.evaluate.build; "
        "print([m for m in ('torch', 'lm_eval', 'datasets', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
