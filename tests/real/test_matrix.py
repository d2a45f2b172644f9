"""PEFT-Arena's whole matrix on the first blocks of SmolLM2: no method, paradigm or task is broken.

Every entrant of the packaged recipe takes an optimizer step in the recipe's own way and is
measured on a few losses; each benchmark is asked of the base, with a few items and new tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.arena.driver import run_arena
from backtrack.evaluate.build import build_objectives
from backtrack.recipe import find_recipe
from backtrack.recipe.arena import ArenaRecipe, load_arena
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from tests.evaluate.asking import as_model

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

SMALL = {
    "sft": [
        "sft.max_steps=1",
        "sft.per_device_train_batch_size=1",
        "sft.gradient_accumulation_steps=1",
        "sft.gradient_checkpointing=false",
        "sft.max_length=256",
        "sft.save_strategy='no'",
    ],
    "grpo": [
        "grpo.max_steps=4",
        "grpo.num_generations=2",
        "grpo.max_completion_length=4",
        "grpo.per_device_train_batch_size=2",
        "grpo.gradient_accumulation_steps=1",
        "grpo.steps_per_generation=4",
        "grpo.gradient_checkpointing=false",
        "grpo.use_vllm=false",
        "grpo.save_strategy='no'",
    ],
}


OBJECTIVES = """[
  {kind: examples, role: target, name: letters, path: train.jsonl, score: nll,
   prompt: "{extra_info[question]}", completion: " {reward_model[ground_truth]}"},
  {kind: examples, role: general, name: questions, path: train.jsonl, score: nll,
   prompt: "{reward_model[ground_truth]}:", completion: " {extra_info[question]}"}]"""
SEARCH = """{alphas: [0.5], checkpoints: 0, trials: 0, racing: {shares: []},
  items: {selection: 4, report: 4}}"""


def load(base: Path, documents: Path, *overrides: str) -> ArenaRecipe:
    return load_arena(
        find_recipe(Path("peft-arena")),
        [
            f"base={base}",
            "data.train=train.jsonl",
            f"output={documents / 'arenas'}",
            "engine=transformers",
            "diagnose=null",
            f"search={SEARCH}",
            *overrides,
        ],
    )


@pytest.mark.parametrize(("domain", "paradigm"), [("math", "sft"), ("medicine", "grpo")])
def test_every_method_is_trained_and_measured(
    first_blocks: Path, documents: Path, domain: str, paradigm: str
) -> None:
    options = (f"domain={domain}", f"paradigm={paradigm}", f"objectives={OBJECTIVES}")
    arena = load(first_blocks, documents, *options, *SMALL[paradigm])
    assert arena.name == f"peft-arena-first-instruct-{domain}-{paradigm}"
    found = run_arena(arena)
    assert {e.label: e.failure for e in found.entrants if e.failure} == {}
    assert {e.state for e in found.entrants} == {"measured"}
    assert {len(e.points) for e in found.entrants} == {3}
    (full,) = [e for e in found.entrants if e.name == "full"]
    run = Run.open(documents / "arenas" / arena.name / full.run)
    assert {str(t.dtype) for t in read_checkpoint(run, run.final.step).values()} == {
        "torch.bfloat16"
    }


def test_each_benchmark_is_asked_of_a_real_model(first_blocks: Path, documents: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(first_blocks).eval()
    tokenizer = AutoTokenizer.from_pretrained(first_blocks)
    asked = as_model(model, tokenizer)
    measured = set()
    for domain in ("math", "medicine"):
        recipe = load(first_blocks, documents, f"domain={domain}").entrants[0].recipe
        short: tuple[Any, ...] = tuple(
            o.model_copy(update={"max_gen_toks": 2}) for o in recipe.objectives
        )
        assert all(o.apply_chat_template for o in short), "it is an instruct model by its name"
        new = [o for o in short if o.name not in measured]
        for objective in build_objectives(
            recipe.model_copy(update={"objectives": new}), tokenizer
        ):
            scores = objective.measure(asked, objective.item_ids[:2])
            assert all(0 <= score <= 1 for score in scores)
            measured.add(objective.info.name)
    assert measured == {"math500", "amc23", "aime24", "medicine", "ifeval", "nq", "bbh"}
