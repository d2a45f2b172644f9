"""Effective weights of layers that store their weights transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import (
    make_peft_run,
    make_tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def test_layers_that_store_weights_transposed_are_merged_correctly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model: Any = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj"], r=4, fan_in_fan_out=True
    )
    run = make_peft_run(tmp_path / "run", tmp_path / "base", config)
    attached, merged = Placement(run), Placement(run, form="merged")
    for placement in (attached, merged):
        placement.place(Point(step=20, alpha=0.4, profile="modules(1,0.5)"))
    torch.testing.assert_close(probe(merged.model), probe(attached.model), atol=1e-5, rtol=0)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    final = PeftModel.from_pretrained(stock, str(run.folder(20))).eval()
    attached.place(run.final)
    assert torch.equal(probe(attached.model), probe(final))
