"""Building objectives from a recipe."""

from __future__ import annotations

import subprocess
import sys

from backtrack.evaluate.build import build_objectives


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


def test_scores_of_another_engine_are_scores_of_another_objective(recipe_of, jsonl, tokenizer):
    path = jsonl([{"prompt": "a", "completion": "the cat"}] * 3)
    recipe = recipe_of({"kind": "examples", "path": path})

    def fingerprint(**engine: object) -> str:
        changed = recipe.model_validate({**recipe.model_dump(), "engine": engine})
        return build_objectives(changed, tokenizer)[0].info.fingerprint

    plain = fingerprint(kind="vllm")
    assert fingerprint(kind="transformers") != plain != fingerprint(kind="vllm", dtype="float16")
    assert plain == fingerprint(kind="vllm", memory_share=0.2, max_loras=3)


def test_the_batch_size_decides_scores_in_this_process_only(recipe_of, jsonl, tokenizer):
    path = jsonl([{"prompt": "a", "completion": "the cat"}] * 3)

    def fingerprint(batch_size: int, kind: str) -> str:
        recipe = recipe_of({"kind": "examples", "path": path}, batch_size=batch_size)
        changed = recipe.model_validate({**recipe.model_dump(), "engine": kind})
        return build_objectives(changed, tokenizer)[0].info.fingerprint

    assert fingerprint(4, "transformers") != fingerprint(8, "transformers")
    assert fingerprint(4, "vllm") == fingerprint(8, "vllm")


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, backtrack.evaluate.build; "
        "print([m for m in ('torch', 'lm_eval', 'datasets', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
