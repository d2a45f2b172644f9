"""What training a recipe writes."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backtrack.errors import RecipeError, RunError, UsageError
from backtrack.path.placement import Placement
from backtrack.run.answers import load_tokenizer
from backtrack.run.checkpoint_reader import fingerprint, read_checkpoint
from backtrack.run.directory import MODEL_FILES, Run
from backtrack.train.trainers.train import TrainingProgress, train
from tests.models import load_whole, make_base, make_tokenizer
from tests.train.conftest import MakeRecipe

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_full_training_leaves_plain_models_and_the_recipe(
    make_recipe: MakeRecipe, base: Path
) -> None:
    recipe = make_recipe(seed=3)
    run = train(recipe, recipe_text="name: tiny  # in my words\n")

    assert run.steps == (3, 6, 7)
    assert (run.manifest.method.kind, run.manifest.seed) == ("full", 3)
    assert run.base.fingerprint == fingerprint(base)
    assert {"torch", "transformers", "peft", "trl", "backtrack-llm"} >= set(
        run.manifest.versions
    ) - {"safetensors"}
    assert run.recipe == recipe
    assert (run.path / "recipe.yaml").read_text() == "name: tiny  # in my words\n"
    last = load_whole(run, 7).state_dict()
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert last.keys() == start.keys()
    assert any(not torch.equal(last[name], start[name]) for name in last)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "lora", "r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        {"kind": "oft", "oft_block_size": 8, "use_cayley_neumann": False},
        {"kind": "oft", "r": 2, "oft_block_size": 0, "target_modules": ".*q_proj"},
    ],
    ids=["lora", "oft-blocks", "oft-rank"],
)
def test_every_field_of_the_method_reaches_peft(
    make_recipe: MakeRecipe, base: Path, method: dict[str, Any]
) -> None:
    run = train(make_recipe(method=method))

    written = json.loads((run.folder(7) / "adapter_config.json").read_text())
    for key, value in method.items():
        if key == "target_modules" and isinstance(value, list):
            assert written[key] == sorted(value)
        elif key != "kind":
            assert written[key] == value
            assert run.manifest.method.settings.get(key, value) == value
    assert written["task_type"] == "CAUSAL_LM"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.folder(7))
    tokens = torch.arange(3, 19).view(1, -1)
    with model.disable_adapter():
        before = model(tokens).logits
    assert not torch.equal(model(tokens).logits, before)


def test_every_linear_layer_but_the_head_is_trained_unless_targets_are_named(
    make_recipe: MakeRecipe,
) -> None:
    run = train(make_recipe(method={"kind": "lora", "r": 2}))
    names = read_checkpoint(run, 7)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in names}
    assert layers == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "dtype"),
    [({"kind": "full"}, torch.bfloat16), ({"kind": "lora", "r": 4}, torch.float32)],
    ids=["full", "lora"],
)
def test_a_bf16_base_is_trained_in_its_dtype_and_placed_from_its_files(
    make_recipe: MakeRecipe, tmp_path: Path, method: dict[str, Any], dtype: torch.dtype
) -> None:
    base = make_base(tmp_path / "half", dtype="bfloat16")
    run = train(make_recipe(base=str(base), method=method))
    assert {tensor.dtype for tensor in read_checkpoint(run, 7).values()} == {dtype}
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    assert placement.model.dtype == torch.bfloat16


def test_a_recipe_may_train_half_precision_files_in_full_precision(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "half", dtype="bfloat16")
    run = train(make_recipe(base={"model": str(base), "dtype": "float32"}))
    assert {t.dtype for t in read_checkpoint(run, 7).values()} == {torch.float32}
    assert run.base.dtype == "float32"


def test_chat_messages_are_trained_through_the_chat_template(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    turns = [{"role": "user", "content": "1 + 2 ="}, {"role": "assistant", "content": "3"}]
    data = tmp_path / "chat.jsonl"
    data.write_text((json.dumps({"messages": turns}) + "\n") * 8)

    run = train(make_recipe(base=str(base), data={"train": str(data)}))

    assert run.steps == (3, 6, 7)
    assert not list((run.path / MODEL_FILES).glob("tokenizer*"))


def test_a_chat_template_given_to_training_stays_with_the_run(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    run = train(make_recipe(sft={"chat_template_path": str(template)}))
    assert load_tokenizer(run).chat_template == TEMPLATE


@pytest.mark.parametrize("cadence", [{"log_checkpoints": 3}, {"every_distance": 0.05}])
def test_a_recipe_may_save_steps_by_another_cadence(
    make_recipe: MakeRecipe, cadence: dict[str, Any]
) -> None:
    recipe = make_recipe(method={"kind": "lora", "r": 2}, trajectory=cadence)
    run = train(recipe)
    assert Run.open(run.path).recipe == recipe
    assert run.final.step == 7


def test_progress_counts_every_step(make_recipe: MakeRecipe) -> None:
    reports: list[TrainingProgress] = []
    train(make_recipe(), on_progress=reports.append)
    assert sorted({progress.done for progress in reports}) == list(range(8))
    assert {progress.total for progress in reports} == {7}
    assert reports[0].loss is None
    assert reports[-1].loss is not None


def test_training_prints_nothing_by_itself(
    make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    train(make_recipe())
    assert capfd.readouterr().out == ""


def test_the_seed_determines_the_run(make_recipe: MakeRecipe) -> None:
    method = {"kind": "lora", "r": 4}
    runs = [
        train(make_recipe(method=method, name=name, seed=seed))
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    ]
    a, b, c = (run.entry(7).sha256 for run in runs)
    assert a == b
    assert a != c


def test_the_error_for_an_existing_run_suggests_resuming(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe())
    with pytest.raises(RunError, match="--resume"):
        train(make_recipe())
    assert Run.open(run.path).steps == (3, 6, 7)


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"base": "no/such-base"}, RunError, "no/such-base"),
        ({"data": {"train": "no/such-data"}}, UsageError, "no/such-data"),
        ({"data": None}, UsageError, "no `data`"),
        ({"method": None}, UsageError, "no `method`"),
        ({"sft": {"max_length": 2}}, UsageError, "sft.max_length"),
        ({"sft": {"learning_ratee": 1}}, RecipeError, "Did you mean 'learning_rate'"),
        ({"sft": {"assistant_only_loss": True}}, UsageError, "not conversational"),
        ({"sft": {"bf16": True}}, UsageError, "this machine"),
        (
            {"method": {"kind": "lora", "target_modules": ["nowhere"]}},
            UsageError,
            "nowhere",
        ),
    ],
)
def test_a_recipe_that_cannot_be_trained_leaves_no_run(
    make_recipe: MakeRecipe, sections: dict[str, Any], error: type[Exception], message: str
) -> None:
    if torch.cuda.is_available() and "bf16" in sections.get("sft", {}):
        pytest.skip("this machine has what the recipe asks for")
    recipe = make_recipe(**sections)
    with pytest.raises(error, match=message):
        train(recipe)
    assert not (Path(recipe.output) / recipe.name).exists()


def test_a_full_disk_during_the_trainers_own_save_is_reported_and_can_be_resumed(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    # Weights fit under the limit, the optimizer's state of twice their size does not.
    recipe = make_recipe(sft={"save_steps": 4})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(progress: TrainingProgress) -> None:
        if progress.done == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, before[1]))

    try:
        with pytest.raises(RunError, match=r"could not write its state .*--resume"):
            train(recipe, on_progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Run.open(tmp_path / "runs" / "tiny").steps == (3,)
    assert train(recipe, resume=True).steps == (3, 6, 7)


@pytest.mark.shared
def test_the_small_english_model_is_placed_from_its_own_files(
    make_recipe: MakeRecipe, shared: Path
) -> None:
    base = shared / "models" / "tiny-en"
    run = train(make_recipe(base=str(base), method={"kind": "lora", "r": 4}))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.folder(7))
    assert model.dtype == torch.bfloat16
    Placement(run, device="cpu").place(run.final)
