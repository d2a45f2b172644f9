"""Prompts: from each kind of objective and from files, drawn once, cut to the context."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from backtrack.diagnose.prompts import Prompts, find_prompts
from backtrack.errors import UsageError
from backtrack.recipe import Recipe
from tests.models import make_tokenizer


def placement(context: int = 64) -> Any:
    """The parts of a placement that `find_prompts` reads."""
    config = LlamaConfig(max_position_embeddings=context)
    return SimpleNamespace(model=SimpleNamespace(config=config), tokenizer=make_tokenizer())


def recipe(*objectives: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "x", "base": "b", "objectives": list(objectives)})


def texts(prompts: Prompts) -> list[str]:
    return [str(make_tokenizer().decode(list(ids))) for ids in prompts.ids]


def write_lines(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_roles_objectives_share_the_prompts_and_the_draw_is_seeded(tmp_path):
    many = write_lines(tmp_path / "many.jsonl", [{"q": f"q{i}", "a": "1"} for i in range(30)])
    few = write_lines(tmp_path / "few.jsonl", [{"q": f"f{i}", "a": "1"} for i in range(2)])
    target = write_lines(tmp_path / "target.jsonl", [{"q": "t", "a": "1"}])
    common = {"kind": "examples", "prompt": "say {q}:", "completion": "{a}"}
    asked = recipe(
        {**common, "role": "general", "path": few},
        {**common, "role": "general", "path": many},
        {**common, "role": "target", "path": target},
    )
    found = find_prompts(asked, {}, placement(), 10, seed=3)
    general = next(p for p in found if p.role == "general")
    assert general.source == "few, many"
    assert texts(general)[:2] == ["say f0:", "say f1:"]
    assert len(general.ids) == 10, "what one lacks the others give"
    assert find_prompts(asked, {}, placement(), 10, seed=3) == found
    assert find_prompts(asked, {}, placement(), 10, seed=4) != found


def test_files_hold_a_prompt_a_line_or_a_field_and_long_ones_are_cut(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nsecond line\n")
    write_lines(tmp_path / "b.jsonl", [{"question": "x" * 100}, {"question": "why?"}])
    files: Any = {"general": tmp_path / "a.txt", "target": tmp_path / "b.jsonl"}
    target, general = find_prompts(None, files, placement(context=16), 8, seed=0)
    assert texts(general) == ["first", "second line"]
    assert sorted(texts(target)) == ["why?", "x" * 16]
    assert (target.record.num_prompts, target.record.num_tokens) == (2, 20)
    write_lines(tmp_path / "b.jsonl", [{"nothing": "here"}])
    with pytest.raises(UsageError, match="prompt, question, text"):
        find_prompts(None, files, placement(), 8, seed=0)


def test_windows_of_running_text_do_not_overlap(tmp_path):
    (tmp_path / "prose.txt").write_text("".join(chr(97 + i % 26) for i in range(80)))
    files: Any = {"target": tmp_path / "t.txt"}
    files["target"].write_text("a\n")
    text = {"kind": "text", "role": "general", "path": str(tmp_path / "prose.txt")}
    other = {**text, "role": "target", "name": "other"}
    asked = recipe({**text, "window_tokens": 16, "start": 0.2}, other)
    general = next(p for p in find_prompts(asked, files, placement(), 8, 0) if p.role == "general")
    whole = (tmp_path / "prose.txt").read_text()[16:]
    assert texts(general) == [whole[i : i + 16] for i in range(0, 64, 16)]


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
def test_tasks_of_lm_eval_give_their_documents_without_answers(shared, monkeypatch):
    monkeypatch.chdir(shared / "data")
    asked = recipe(
        {"kind": "lm_eval", "role": "target", "task": "gsm8k", "metric": "exact_match",
         "filter": "strict-match"},
        {"kind": "lm_eval", "role": "general", "task": "nq_open", "metric": "exact_match",
         "filter": "remove_whitespace"},
    )  # fmt: skip
    target, general = find_prompts(asked, {}, placement(context=512), 4, seed=0)
    assert all(text.startswith("Question:") for text in texts(target))
    assert all(text.endswith("Answer:") for text in texts(target))
    assert all(len(ids) > 10 for ids in general.ids)
