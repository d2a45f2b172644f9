"""Packaged arenas: each loads, names its own command, and covers the paper's methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from backtrack.arena.entrants import paradigm_of
from backtrack.arena.plan import plan_arena
from backtrack.cli import app
from backtrack.recipe import find_recipe, packaged_arenas
from backtrack.recipe.arena import ArenaRecipe, is_arena, load_arena
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.paradigms import trainer_config
from tests.models import make_base

ARENAS = packaged_arenas()
PAPER = {
    "full", "lora-r4", "lora-r8", "lora-r16", "lora-r32", "dora-r8", "pissa-r8", "milora-r8",
    "pissa-r8-release", "milora-r8-release", "adalora-r8", "vera-r256", "oft-b16", "oft-b32",
    "oft-b64", "oft-b128", "oft-b32-dense", "ia3",
}  # fmt: skip
ONLY_SFT = {"miss-r8", "miss-r64", "keeplora-r8", "keeplora-r8-release"}
BY_REWARDS = {"full", "lora-r8", "oft-b32"}
SMALL = {
    "full", "lora-r8", "lora-r32", "dora-r8", "pissa-r8", "adalora-r8", "vera-r256", "miss-r8",
    "oft-b16", "oft-b32", "ia3",
}  # fmt: skip


@pytest.mark.parametrize("name", ["demo-arena", "demo-arena-grpo"])
@pytest.mark.filterwarnings("ignore")
def test_every_small_arena_loads_and_has_its_methods(name: str) -> None:
    path = ARENAS[name]
    assert is_arena(path)
    arena = load_arena(path, checks=[library_faults])
    assert arena.name == name
    assert f"backtrack arena {name}" in path.read_text(encoding="utf-8")
    assert {e.name for e in arena.entrants} >= (BY_REWARDS if name.endswith("-grpo") else SMALL)
    assert {paradigm_of(e) for e in arena.entrants} == {"grpo" if "-grpo" in name else "sft"}


@pytest.fixture(scope="module")
def paper() -> Callable[..., ArenaRecipe]:
    def load(*overrides: str) -> ArenaRecipe:
        return load_arena(ARENAS["peft-arena"], overrides, checks=[library_faults])

    return load


@pytest.mark.parametrize("domain", ["math", "medicine"])
@pytest.mark.parametrize("paradigm", ["sft", "grpo"])
@pytest.mark.filterwarnings("ignore")
def test_one_recipe_holds_the_paper_s_matrix(paper, domain: str, paradigm: str) -> None:
    arena = paper(f"domain={domain}", f"paradigm={paradigm}")
    assert arena.name == f"peft-arena-Qwen2.5-7B-{domain}-{paradigm}"
    names = [entrant.name for entrant in arena.entrants]
    assert set(names) == PAPER | (ONLY_SFT if paradigm == "sft" else set())
    assert {paradigm_of(e) for e in arena.entrants} == {paradigm}
    assert {e.recipe.base.dtype for e in arena.entrants} == {"bfloat16"}
    assert {e.recipe.adapter_dtype for e in arena.entrants} == {"base"}
    recipe = arena.entrants[0].recipe
    targets = {o.name for o in recipe.objectives if o.role == "target"}
    assert targets == ({"math500", "amc23", "aime24"} if domain == "math" else {"medicine"})
    general = [o.name for o in recipe.objectives if o.role == "general"]
    assert general == ["ifeval", "nq", "bbh"]
    assert len({o.weight for o in recipe.objectives}) == 1, "a role is the unweighted mean"
    (dense,) = [e for e in arena.entrants if e.name == "oft-b32-dense"]
    assert dense.like == "oft-b32"


@pytest.mark.filterwarnings("ignore")
def test_supervised_training_is_the_release_s(paper) -> None:
    recipes = {e.name: e.recipe for e in paper("domain=medicine").entrants}
    settings = trainer_config(
        "sft", {**recipes["lora-r8"].sft, "use_cpu": True}, Path("unused"), 0
    )
    assert (settings.adam_beta1, settings.adam_beta2, settings.weight_decay) == (0.9, 0.95, 0.01)
    assert settings.get_warmup_steps(780) == 78
    assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 256
    assert not settings.bf16
    assert settings.dataloader_drop_last
    data = recipes["lora-r8"].data
    assert (data.answer_end, data.overlong, settings.max_length) == ("eos", "drop", 8192)
    full = recipes["full"].sft
    assert [full[k] for k in ("learning_rate", "num_train_epochs", "max_length")] == [
        5e-5,
        1,
        2048,
    ]
    ia3 = recipes["ia3"].method.settings
    assert len(ia3["target_modules"]) == 7, "all linear ones, by name: PEFT reads no other again"
    assert set(ia3["feedforward_modules"]) < set(ia3["target_modules"])
    assert recipes["miss-r8"].method.settings["miss_dropout"] == 0.05


@pytest.mark.filterwarnings("ignore")
def test_four_optimizer_steps_are_taken_on_a_rollout(paper) -> None:
    recipes = {e.name: e.recipe for e in paper("paradigm=grpo").entrants}
    settings = trainer_config(
        "grpo",
        {**recipes["lora-r8"].grpo, "use_cpu": True, "use_vllm": False},
        Path("unused"),
        0,
        reward_weights=[1.0],
    )
    assert settings.generation_batch_size == 256 * 8
    assert settings.steps_per_generation / settings.gradient_accumulation_steps == 4
    assert recipes["lora-r8"].trajectory.every_steps == 50 * 4
    assert recipes["full"].grpo["learning_rate"] == 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("base", "is_chat"),
    [("Qwen/Qwen2.5-7B", False), ("meta-llama/Llama-3.2-3B-Instruct", True)],
)
def test_bbh_is_asked_by_the_chat_template_of_an_instruct_model(paper, base, is_chat) -> None:
    arena = paper(f"base={base}")
    (bbh,) = [o for o in arena.entrants[0].recipe.objectives if o.name == "bbh"]
    assert bbh.apply_chat_template == is_chat
    others = [o for o in arena.entrants[0].recipe.objectives if o.name != "bbh"]
    assert all(o.apply_chat_template for o in others)


@pytest.mark.filterwarnings("ignore")
def test_a_dry_run_says_cards_hours_disk_and_tokens(paper, tmp_path: Path, capsys) -> None:
    base = make_base(tmp_path / "base")
    num = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
    overrides = [f"base={base}", "sft.max_steps=780"]
    plans, _ = plan_arena(paper(*overrides))
    by_name = {plan.label: plan.as_dict() for plan in plans}
    full, dora, dense = (by_name[name] for name in ("full", "dora-r8", "oft-b32-dense"))
    assert full["num_cards"] == 1
    assert dora["train_tokens"] == 780 * 256 * 8192
    # 2 FLOP a weight and token; a pass forward again, and for the weights' gradients, makes four.
    for entrant, passes, length in ((dora, 3, 8192), (full, 4, 2048)):
        hours = 2 * passes * num * 780 * 256 * length / (0.4 * 989e12) / 3600
        assert entrant["train_hours"] == pytest.approx(hours)
    # Twenty checkpoints, and the state for resuming: two of the weights and both averages.
    assert full["disk_bytes"] == (20 + 2 * 3) * 2 * num
    assert (dense["train_hours"], dense["disk_bytes"]) == (0, 0)
    # 16 samples of 250 problems of MATH-500, half of AMC's 40 and of AIME's 30.
    written = 16 * 8192 * (250 + 20 + 15) + 250 * (1025 + 50 + 512)
    points = 2 + 9 + 2 * 4 + 8 + 3
    assert dora["measure_tokens"] == pytest.approx(written * points, rel=0.02)
    changes = [part for text in overrides for part in ("--set", text)]
    app(args=["arena", "peft-arena", "--dry-run", *changes], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "in all, as far as known: 1 card at once" in printed
    assert "keeplora-r8" in printed


def test_an_arena_is_found_by_its_name() -> None:
    assert find_recipe(Path("demo-arena")) == ARENAS["demo-arena"]
