"""A recipe's keys for TRL and PEFT are checked before anything is loaded, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backtrack.errors import RecipeError
from backtrack.recipe import load_recipe
from backtrack.train.methods.configs import peft_config
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.paradigms import trainer_config

RECIPE = """\
name: faulty
base: some/base
seeed: 1
method: {kind: lora, r: eight, lora_alhpa: 16, base_model_name_or_path: x}
data: {train: data.jsonl, prompt: "{q}"}
sft: {learning_ratee: 1.0e-4, max_steps: ten, output_dir: here, packing: true}
"""


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, checks=[library_faults])
    listed = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 8
    for expected in [
        "seeed: unknown key. Did you mean 'seed'?",
        "data: give both `prompt` and `completion`, or neither",
        "sft.learning_ratee: unknown key. Did you mean 'learning_rate'?",
        "sft.max_steps: input should be a valid integer",
        "sft.output_dir: not set here; set `output` and `name` at the top of the recipe.",
        "method.r: input should be a valid integer",
        "method.lora_alhpa: unknown key. Did you mean 'lora_alpha'?",
        "method.base_model_name_or_path: not set here; set `base.model`.",
    ]:
        assert expected in listed


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"sft": {"lr_scheduler_type": "cosin"}}, "cosin is not a valid SchedulerType"),
        ({"sft": {"bf16": True, "fp16": True}}, "sft: TRL refuses"),
        ({"sft": {"seed": 3}}, "set `seed` at the top"),
        ({"sft": {"resume_from_checkpoint": "x"}}, "--resume"),
        ({"sft": {"peft_config": {}}}, "set `method`"),
        ({"sft": {"eval_strategy": "steps"}}, "set `data.eval`"),
        ({"early_stop": {}, "data": {"train": "x"}}, "early_stop: it needs evaluation data"),
        ({"grpo": {"reward_weights": [1]}}, "set `weight` in `rewards`"),
        ({"grpo": {"num_generation": 4}}, "Did you mean 'num_generations'?"),
        ({"grpo": {"num_generations": 1}}, "grpo: TRL refuses"),
        ({"data": {"train": "x", "prompt": "{q}"}}, "give both `prompt` and `completion`"),
        ({"method": {"kind": "oft", "lora_alpha": 3}}, "method.lora_alpha: unknown key"),
        ({"method": {"kind": "oft", "r": 4, "oft_block_size": 4}}, "method: PEFT refuses"),
        ({"method": {"kind": "lora", "init_lora_weights": "corda"}}, "a script of your own"),
        ({"method": {"kind": "lora", "init_lora_weights": "gauss"}}, "should be 'gaussian'"),
    ],
)
def test_a_fault_says_what_to_do(raw: dict[str, Any], fault: str) -> None:
    (found,) = library_faults(raw)
    assert fault in found


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"sft": None, "method": {"kind": "full"}},
        {"sft": ["not", "a", "mapping"], "method": "lora"},
        {"sft": {"bf16": True}},
        {"sft": {"eval_strategy": "epoch"}, "data": {"train": "x", "eval_split": "test"}},
        {"grpo": {"use_vllm": True, "beta": 0.04}, "data": {"train": "x", "prompt": "{q}"}},
        {"method": {"kind": "lora", "r": 8, "use_rslora": True, "target_modules": ["q_proj"]}},
        {"method": {"kind": "oft", "oft_block_size": 16, "coft": True}},
    ],
)
def test_what_pydantic_checks_or_another_machine_supports_is_no_fault(raw: dict[str, Any]) -> None:
    assert library_faults(raw) == []


def test_a_number_that_yaml_reads_as_text_becomes_a_number() -> None:
    config = trainer_config(
        "sft", {"learning_rate": "1e-4", "use_cpu": True}, Path("unused"), seed=0
    )
    assert config.learning_rate == 1e-4


def test_a_machine_without_a_gpu_trains_without_half_precision_tricks() -> None:
    config = trainer_config("sft", {"use_cpu": True}, Path("unused"), seed=7)
    assert (config.bf16, config.gradient_checkpointing) == (False, False)
    assert (config.seed, config.data_seed, config.report_to) == (7, 7, [])


def test_target_parameters_replace_the_default_target_modules() -> None:
    config = peft_config("lora", {"target_parameters": ["experts.gate_up_proj"]})
    assert config.target_modules is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("sft: {max_steps: 3}\ngrpo: {}\nrewards: [{kind: numeric}]", "one of `sft` and `grpo`"),
        ("grpo: {}", "`grpo` needs `rewards`"),
        ("rewards: [{kind: numeric}]", "`rewards` are for `grpo`"),
        ("grpo: {}\nrewards: [{kind: numerc}]", "Did you mean 'numeric'?"),
        ("grpo: {}\nrewards: [{kind: format}]", "rewards.0.pattern: this key is needed"),
        ("grpo: {}\nrewards: [{kind: format, pattern: '('}]", "not a regular expression"),
        ("grpo: {}\nrewards: [{kind: numeric, anwser: x}]", "Did you mean 'answer'?"),
        ("grpo: {}\nrewards: [{kind: numeric}, {kind: numeric}]", "two rewards are called"),
        ("watch: {every_steps: 5}", "`watch` measures `objectives`"),
        ("data: {train: x, system: Be brief.}", "set `chat: true`"),
    ],
)
def test_contradictory_sections_are_refused(tmp_path: Path, lines: str, fault: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: x\nbase: some/base\n{lines}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, checks=[library_faults])
    assert fault in "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 1
