"""What the release of PEFT-Arena trains with: factors, dtypes, ends of answers, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from backtrack.errors import UsageError
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.train.methods.initial_factors import PRINCIPAL_RANKS, keeplora_factors
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.train import train
from tests.models import make_base, make_tokenizer
from tests.path.tuners import LINEAR
from tests.train.conftest import MakeRecipe
from tests.train.test_supervised import CHAT

pytestmark = pytest.mark.filterwarnings("ignore")

LORA = {"kind": "lora", "r": 2, "lora_alpha": 4}
RANK = 3


def test_keeplora_factors_the_gradient_off_the_principal_directions() -> None:
    """The release's function gives the same product to 1e-6, once it has exact singular vectors.

    By its random projection without oversampling it is 16% off where each singular value is 0.7 of
    the one before, and says nothing where they are alike.
    """
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 40, 30, generator=generator)
    down, up = keeplora_factors(weight, gradient, RANK)
    principal = torch.linalg.svd(weight).Vh[: PRINCIPAL_RANKS * RANK].T
    rest = gradient - gradient @ principal @ principal.T
    left, values, right = torch.linalg.svd(rest)
    best = left[:, :RANK] @ values[:RANK].diag() @ right[:RANK]
    torch.testing.assert_close(up @ down, best, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(down @ down.T, torch.eye(RANK), atol=1e-5, rtol=0)
    torch.testing.assert_close(down @ principal, torch.zeros(RANK, 12), atol=1e-5, rtol=0)


def adapted(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def test_keeplora_starts_from_the_gradient_of_one_micro_batch(
    make_recipe: MakeRecipe, tmp_path: Path, base: Path
) -> None:
    trainer = build_trainer(
        make_recipe(method={**LORA, "init_lora_weights": "keeplora"}), tmp_path
    )
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain(**next(iter(trainer.get_train_dataloader()))).loss.backward()
    names = dict(plain.named_modules())
    for name, layer in adapted(trainer.model).items():
        weight = names[name.removeprefix("base_model.model.")].weight
        down, up = keeplora_factors(weight.detach(), weight.grad, 2)
        found = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(found, up @ down, atol=1e-5, rtol=1e-3)
    assert trained_parts(trainer.model) == {"lora_B"}
    assert not any(p.grad is not None for p in trainer.model.parameters())


def trained_parts(model: Any) -> set[str]:
    return {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}


def test_keeplora_needs_given_completions(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    method = {**LORA, "init_lora_weights": "keeplora"}
    recipe = make_recipe(method=method).model_copy(update={"sft": {}, "grpo": {}})
    with pytest.raises(UsageError, match="the gradient of given completions"):
        build_trainer(recipe, tmp_path)


def test_what_the_release_trains_as_keeplora_is_a_frozen_random_a(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe(method={**LORA, "init_lora_weights": "frozen_a"}))
    first, last = read_checkpoint(run, 3), read_checkpoint(run, 7)
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]) == ("lora_A" in name), name
        if "lora_A" in name:
            assert tensor.std() > 0


@pytest.mark.parametrize("kind", ["added_pissa", "added_milora"])
def test_the_release_s_pissa_and_milora_start_beside_the_whole_base(
    make_recipe: MakeRecipe, tmp_path: Path, kind: str
) -> None:
    trainer = build_trainer(make_recipe(method={**LORA, "init_lora_weights": kind}), tmp_path)
    part = slice(2) if kind == "added_pissa" else slice(-2, None)
    for layer in adapted(trainer.model).values():
        weight = layer.get_base_layer().weight
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        component = left[:, part] @ values[part].diag() @ right[part]
        merged = layer.get_delta_weight("default")
        torch.testing.assert_close(merged, component, atol=1e-5, rtol=1e-3)


def test_lora_plus_multiplies_the_rate_of_b(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = build_trainer(make_recipe(method={**LORA, "loraplus_lr_ratio": 16}), tmp_path)
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    rates = {
        (group["lr"], names[id(p)].split(".")[-3])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates == {(1e-2, "lora_A"), (0.16, "lora_B")}


METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "pissa": {**LORA, "init_lora_weights": "pissa"},
    "milora": {**LORA, "init_lora_weights": "milora"},
    "keeplora": {**LORA, "init_lora_weights": "keeplora"},
    "adalora": {"kind": "adalora", "init_r": 4, "target_r": 2},
    "vera": {"kind": "vera", "r": 4},
    "miss": {"kind": "miss", "r": 4, "miss_dropout": 0.05},
    "oft": {"kind": "oft", "oft_block_size": 8},
    "ia3": {"kind": "ia3", "target_modules": LINEAR, "feedforward_modules": ["down_proj"]},
    "full": {"kind": "full"},
}


@pytest.fixture(scope="module")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("half") / "tiny", dtype="bfloat16")


@pytest.mark.parametrize("name", METHODS)
def test_everything_is_trained_in_the_dtype_of_the_base(
    make_recipe: MakeRecipe, half_base: Path, name: str
) -> None:
    sft = {"max_steps": 2, "save_strategy": "no", "bf16": False}
    run = train(
        make_recipe(base=str(half_base), adapter_dtype="base", method=METHODS[name], sft=sft)
    )
    assert {tensor.dtype for tensor in read_checkpoint(run, 2).values()} == {torch.bfloat16}


@pytest.fixture
def chat_base(tmp_path: Path) -> Path:
    folder = make_base(tmp_path / "chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("end", ["template", "eos"])
def test_an_answer_ends_as_the_recipe_says(
    make_recipe: MakeRecipe, tmp_path: Path, chat_base: Path, sums: Path, end: str
) -> None:
    data = {"train": str(sums), "prompt": "{sum}", "completion": "{answer}", "chat": True}
    trainer = build_trainer(
        make_recipe(base=str(chat_base), data={**data, "answer_end": end}), tmp_path
    )
    batch = next(iter(trainer.get_train_dataloader()))
    learned = [ids[ids >= 0] for ids in batch["labels"]]
    read = [trainer.processing_class.decode(ids[ids > 0]) for ids in batch["input_ids"]]
    stops = "</s>" if end == "eos" else "\n"
    assert all(text.endswith(stops) for text in read), read
    assert all("assistant: " in text for text in read)
    for text, labels in zip(read, learned, strict=True):
        answer = text.partition("assistant: ")[2]
        assert trainer.processing_class.decode(labels) == answer


def test_overlong_examples_are_dropped_whole(
    make_recipe: MakeRecipe, tmp_path: Path, sums: Path
) -> None:
    data = {"train": str(sums), "prompt": "{sum}", "completion": " {answer}", "overlong": "drop"}
    lengths = {
        limit: [
            len(ids)
            for ids in build_trainer(
                make_recipe(data=data, sft={"max_length": limit}), tmp_path
            ).train_dataset["input_ids"]
        ]
        for limit in (100, 12, 10)
    }
    assert len(lengths[100]) == 40
    assert lengths[12] == [n for n in lengths[100] if n <= 12]
    assert 0 < len(lengths[10]) < len(lengths[12]) < 40
    with pytest.raises(UsageError, match="every one is longer than max_length=3"):
        build_trainer(make_recipe(data=data, sft={"max_length": 3}), tmp_path)
