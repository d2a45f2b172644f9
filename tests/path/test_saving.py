"""Saved models: transformers reads them, and vLLM reads the adapter or the error names why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backtrack.errors import UsageError
from backtrack.evaluate.vllm.adapters import form_in_vllm
from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import make_base, make_full_run, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_tied_head_is_written_as_a_separate_tensor_and_stays_tied(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run", make_base(tmp_path / "base", tied=True))
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.5))
    expected = probe(placement.model)
    placement.save(tmp_path / "untied", is_untied=True)
    tensors = load_file(tmp_path / "untied" / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert not json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"]
    assert torch.equal(probe(AutoModelForCausalLM.from_pretrained(tmp_path / "untied")), expected)
    placement.save(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    placement.place(Point(step=20))
    head, embedding = (
        placement.model.get_output_embeddings(), placement.model.get_input_embeddings()
    )  # fmt: skip
    assert head.weight is embedding.weight
    assert placement.model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("lora", ""),
        ("lora-rs", ""),
        ("lora-patterns", ""),
        ("lora-dora", "DoRA"),
        ("lora-bias", "biases"),
        ("lora-modules", "`modules_to_save`"),
        ("lora-tokens", "trained tokens"),
        ("lora-embedding", "LoRA on the embedding"),
        ("lora-head", "LoRA on the head"),
        ("oft", "OFT adapters"),
    ],
)
def test_vllm_gets_the_adapters_it_reads_and_merged_weights_otherwise(
    tmp_path: Path, name: str, unread: str
) -> None:
    from peft import get_peft_model

    base: Any = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "base"))
    folder = tmp_path / "adapter"
    get_peft_model(base, configs()[name]).save_pretrained(folder)
    assert form_in_vllm(folder, "merged") == "merged"
    if not unread:
        assert form_in_vllm(folder, "auto") == form_in_vllm(folder, "attached") == "attached"
        return
    assert form_in_vllm(folder, "auto") == "merged"
    with pytest.raises(UsageError, match=f"vLLM does not read {unread}.*{{form: merged}}`"):
        form_in_vllm(folder, "attached")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_export_of_many_shards_is_read_by_transformers(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backtrack.path.models.saving.MAX_SHARD", "40KB")
    run = make_full_run(tmp_path / "run", make_base(tmp_path / "base", tied=tied))
    export(run, Point(step=20, alpha=0.6), tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).is_file()
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.6))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(probe(loaded), probe(placement.model))


def test_a_pattern_from_the_beginning_of_a_name_keeps_its_scaling(tmp_path: Path) -> None:
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8,
        alpha_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 64},
    )  # fmt: skip
    base = make_base(tmp_path / "base")
    run = make_peft_run(tmp_path / "run", base, lora)
    export(run, run.final, tmp_path / "out", form="adapter", device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(base)
    placement = Placement(run, device="cpu", form="attached")
    placement.place(run.final)
    expected = probe(placement.model)
    found = probe(PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval())
    assert torch.allclose(found, expected, atol=1e-5)
