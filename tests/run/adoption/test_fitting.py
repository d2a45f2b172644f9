"""Every checkpoint of a folder is held to the rules of the last one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from backtrack.errors import CheckpointError, PlacementError
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records import CheckpointEntry
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_writer import describe_checkpoint, weight_files
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("fitting") / "base")


def save_steps(source: Path, base: Path, *, is_peft: bool, **options: Any) -> Path:
    """A Trainer's folder with two steps, 10 and 20."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if is_peft:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
        model = get_peft_model(model, lora)
    for step in (10, 20):
        jitter(model, 0.05, seed=step, only_trainable=is_peft)
        model.save_pretrained(str(source / f"checkpoint-{step}"), **options)
    return source


def change(folder: Path, how: Change) -> None:
    """Rewrite the weights of a checkpoint."""
    (path,) = weight_files(folder)
    save_file(how(load_file(path)), path, metadata={"format": "pt"})


def prefixed(prefix: str) -> Change:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def compiled(tensors: Tensors) -> Tensors:
    return {n.replace(".layers.", "._orig_mod.layers.", 1): t for n, t in tensors.items()}


def without_a_layer(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}


def divided(tensors: Tensors) -> Tensors:
    return {name: torch.empty(0) if t.ndim == 2 else t for name, t in tensors.items()}


def with_one_more(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if "q_proj" in name)
    return {**tensors, name.replace("q_proj", "o_proj"): tensors[name].clone()}


def adopted(source: Path, base: Path, said: list[str] | None = None) -> Run:
    said = [] if said is None else said
    return adopt(source, base=str(base), runs=source.parent / "runs", on_skip=said.append)


def logits(model: Any) -> torch.Tensor:
    return probe(model.eval())


def placed(run: Run, step: int) -> torch.Tensor:
    placement = Placement(run, device="cpu")
    placement.place(Point(step=step, alpha=1.0))
    return logits(placement.model)


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("names", [compiled, prefixed("_orig_mod."), prefixed("module.")])
@pytest.mark.parametrize("step", [10, 20])
def test_prefixes_of_compilers_and_wrappers_are_left_out(
    base: Path, tmp_path: Path, is_peft: bool, names: Change, step: int
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=is_peft)
    plain = placed(adopted(source, base), step)
    change(source / f"checkpoint-{step}", names)
    assert torch.equal(placed(adopted(source, base), step), plain)


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (without_a_layer, r"lacks .*layers\.1"),
        (divided, "no values of"),
        (lambda _: {}, "no tensors"),
    ],
)
def test_an_earlier_step_without_all_of_its_tensors_is_refused_by_name(
    base: Path, tmp_path: Path, is_peft: bool, how: Change, words: str
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=is_peft)
    change(source / "checkpoint-10", how)
    said: list[str] = []
    run = adopted(source, base, said)
    assert run.steps == (20,)
    assert len(said) == 1
    assert "checkpoint-10" in said[0]
    assert re.search(words, said[0])
    placed(run, 20)


def test_an_adapter_with_a_tensor_that_the_last_one_lacks_is_refused(
    base: Path, tmp_path: Path
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=True)
    change(source / "checkpoint-10", with_one_more)
    said: list[str] = []
    assert adopted(source, base, said).steps == (20,)
    assert "o_proj" in said[0]


@pytest.mark.parametrize("is_peft", [True, False])
def test_the_last_step_without_its_tensors_does_not_cost_the_others(
    base: Path, tmp_path: Path, is_peft: bool
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=is_peft)
    change(source / "checkpoint-20", divided)
    said: list[str] = []
    run = adopted(source, base, said)
    assert run.steps == (10,)
    assert "checkpoint-20" in said[0]
    placed(run, 10)


def test_steps_of_another_kind_than_the_last_are_refused(base: Path, tmp_path: Path) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=True)
    whole = AutoModelForCausalLM.from_pretrained(base)
    shutil.rmtree(source / "checkpoint-10")
    whole.save_pretrained(source / "checkpoint-10")
    said: list[str] = []
    assert adopted(source, base, said).steps == (20,)
    assert "whole model" in said[0]


def test_a_step_of_a_run_that_lacks_tensors_is_refused_when_it_is_visited(
    base: Path, tmp_path: Path
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=True)
    run = adopted(source, base)
    change(source / "checkpoint-10", without_a_layer)
    run.add_entry(_entry_now(run, 10))
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    before = logits(placement.model)
    with pytest.raises(CheckpointError, match=r"checkpoint-10 lacks .*layers\.1"):
        placement.place(Point(step=10, alpha=1.0))
    assert placement.point == run.final
    assert torch.equal(logits(placement.model), before)


def _entry_now(run: Run, step: int) -> CheckpointEntry:
    """The index entry of a step whose files have changed since it was adopted."""
    return describe_checkpoint(run.folder(step), step, folder=str(run.folder(step)))


def average(folder: Path) -> None:
    """Write an averaged copy of the weights beside them, as trainers with EMA do."""
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, folder / "model_ema.safetensors")


def leave_shards(folder: Path) -> None:
    """Save in shards again, where shards of an earlier save remain."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    remaining = folder / "model-00001-of-00009.safetensors"
    save_file({n: t.detach() + 1 for n, t in model.named_parameters()}, remaining)


@pytest.mark.parametrize("spoil", [average, leave_shards])
@pytest.mark.parametrize("step", [10, 20])
def test_files_that_stock_does_not_read_are_ignored(
    base: Path, tmp_path: Path, spoil: Callable[[Path], None], step: int
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=False)
    spoil(source / f"checkpoint-{step}")
    stock = AutoModelForCausalLM.from_pretrained(source / f"checkpoint-{step}")
    run = adopted(source, base)
    assert run.steps == (10, 20)
    assert torch.equal(placed(run, step), logits(stock))


def test_a_shard_that_the_index_names_and_is_missing_is_named(base: Path, tmp_path: Path) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=False, max_shard_size="40KB")
    lost = sorted((source / "checkpoint-10").glob("model-*"))[1]
    lost.unlink()
    said: list[str] = []
    assert adopted(source, base, said).steps == (20,)
    assert lost.name in said[0]


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {"a": "../model.safetensors"}}'])
def test_a_damaged_index_of_shards_is_named(tmp_path: Path, content: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        weight_files(folder)


def test_a_base_with_names_of_another_release_is_the_same_base(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(make_tokenizer()), n_embd=32, n_layer=2, n_head=2)
    base = tmp_path / "base"
    GPT2LMHeadModel(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    source = save_steps(tmp_path / "out", base, is_peft=False)
    change(base, lambda ts: {n.removeprefix("transformer."): t for n, t in ts.items()})
    run = adopted(source, base)
    for step in run.steps:
        stock = AutoModelForCausalLM.from_pretrained(source / f"checkpoint-{step}")
        assert torch.equal(placed(run, step), logits(stock))


def test_a_model_whose_files_lack_weights_is_refused_not_filled(
    base: Path, tmp_path: Path
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=False)
    incomplete = shutil.copytree(base, tmp_path / "incomplete")
    change(incomplete, without_a_layer)
    run = adopted(source, incomplete)
    with pytest.raises(PlacementError, match=r"layers\.1.*random"):
        Placement(run, device="cpu")


def with_a_head(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 1.5}


def test_a_head_with_values_of_its_own_is_not_taken_for_a_tied_one(
    base: Path, tmp_path: Path
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=False)
    change(source / "checkpoint-20", with_a_head)
    run = adopted(source, base)
    for step in run.steps:
        stock = AutoModelForCausalLM.from_pretrained(source / f"checkpoint-{step}")
        assert torch.equal(placed(run, step), logits(stock))


def test_a_step_whose_head_the_last_one_ties_is_refused_when_it_is_visited(
    base: Path, tmp_path: Path
) -> None:
    source = save_steps(tmp_path / "out", base, is_peft=False)
    change(source / "checkpoint-10", with_a_head)
    placement = Placement(adopted(source, base), device="cpu")
    with pytest.raises(PlacementError, match=r"checkpoint-10 has a head of its own, which the"):
        placement.place(Point(step=10))
    placement.place(Point(step=20))


def test_buffers_that_training_moves_are_moved(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64,
        moe_intermediate_size=32, num_hidden_layers=1, first_k_dense_replace=0,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16,
    )  # fmt: skip
    base = tmp_path / "base"
    model = DeepseekV3ForCausalLM(config)
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    bias = next(b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    bias += torch.tensor([3.0, -3.0, 0.0, 1.0])
    model.save_pretrained(tmp_path / "out" / "checkpoint-10")
    placement = Placement(adopted(tmp_path / "out", base), device="cpu")
    for alpha in (0.5, 1.0, 0.0):
        placement.place(Point(step=10, alpha=alpha) if alpha else Point.base())
        live = dict(placement.model.named_buffers())
        moved = next(b for name, b in live.items() if name.endswith("e_score_correction_bias"))
        assert torch.equal(moved, alpha * bias)
