"""A model is loaded in the class that was trained, with all of its parts, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForSequenceClassification,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from backtrack.errors import RunError
from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from tests.models import jitter, make_base, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)


@pytest.fixture(scope="module")
def vision_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3.5 with a vision tower."""
    folder = tmp_path_factory.mktemp("vision") / "base"
    tokens = len(make_tokenizer())
    text = {
        "vocab_size": tokens + 4, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 128,
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
        "num_heads": 2, "patch_size": 4, "spatial_merge_size": 1, "temporal_patch_size": 1,
        "in_channels": 3, "num_position_embeddings": 16,
    }  # fmt: skip
    config = Qwen3_5Config(
        text_config=text, vision_config=vision, image_token_id=tokens,
        video_token_id=tokens + 1, vision_start_token_id=tokens + 2,
        vision_end_token_id=tokens + 3,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"patch_size": 4}')
    return folder


def vision_model(folder: Path) -> Any:
    return Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()


def test_a_vision_tower_moves_and_is_exported(vision_base: Path, tmp_path: Path) -> None:
    model = vision_model(vision_base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "tuned")
    run = adopt(tmp_path / "tuned", base=str(vision_base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    assert torch.equal(probe(placement.model), probe(model))
    export(run, Point(step=1, alpha=0.5), tmp_path / "export", device="cpu")
    ends = [load_file(p / "model.safetensors") for p in (vision_base, tmp_path / "tuned")]
    found = load_file(tmp_path / "export" / "model.safetensors")
    assert found.keys() == ends[1].keys()
    name = "model.visual.blocks.0.attn.proj.weight"
    torch.testing.assert_close(found[name], (ends[0][name] + ends[1][name]) / 2)
    assert (tmp_path / "export" / "preprocessor_config.json").is_file()
    card = (tmp_path / "export" / "README.md").read_text()
    assert "import Qwen3_5ForConditionalGeneration" in card


@pytest.mark.parametrize("kind", [Qwen3_5ForConditionalGeneration, AutoModelForCausalLM])
def test_an_adapter_is_loaded_on_the_class_that_it_was_trained_in(
    kind: Any, vision_base: Path, tmp_path: Path
) -> None:
    """TRL trains the class of `architectures`, many scripts that of AutoModelForCausalLM."""
    model = get_peft_model(kind.from_pretrained(vision_base), LORA)
    jitter(model, 0.05, seed=1)
    model.save_pretrained(str(tmp_path / "tuned"))
    run = adopt(tmp_path / "tuned", runs=tmp_path / "runs")
    stock = PeftModel.from_pretrained(kind.from_pretrained(vision_base), tmp_path / "tuned")
    placement = Placement(run, form="attached", device="cpu")
    placement.place(run.final)
    assert torch.equal(probe(placement.model), probe(stock.eval()))
    export(run, run.final, tmp_path / "export", form="merged", device="cpu")
    torch.testing.assert_close(
        probe(kind.from_pretrained(tmp_path / "export").eval()), probe(stock), atol=1e-5, rtol=0
    )


def test_a_classifier_and_an_encoder_are_refused_by_the_name_of_their_class(
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "base")
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    with pytest.raises(RunError, match="is a LlamaForSequenceClassification"):
        adopt(tmp_path / "classifier", base=str(base), runs=tmp_path / "runs")
    config = tmp_path / "classifier" / "config.json"
    values = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    config.write_text(json.dumps(values))
    with pytest.raises(RunError, match="is a T5ForConditionalGeneration"):
        adopt(tmp_path / "classifier", base=str(base), runs=tmp_path / "runs")


@pytest.mark.parametrize(("task", "named"), [("SEQ_CLS", "SEQ_CLS"), (None, r"score\.lora_A")])
def test_a_reward_adapter_is_refused_by_its_task_or_by_its_head(
    task: Any, named: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base")
    model: Any = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type=task, target_modules=["q_proj", "score"], r=4)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "reward"))
    with pytest.raises(RunError, match=f"is an adapter of a .*{named}"):
        adopt(tmp_path / "reward", base=str(base), runs=tmp_path / "runs")
