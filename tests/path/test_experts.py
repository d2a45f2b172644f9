"""LoRA on the parameters of stacked experts, both projections together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_peft_run, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": len(make_tokenizer()), "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


def qwen3_moe() -> Any:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    )


def gpt_oss() -> Any:
    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4, head_dim=16))


def stock(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base)
    return probe(PeftModel.from_pretrained(model, str(adapter)).eval())


@pytest.fixture(params=[mixtral, qwen3_moe, gpt_oss])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    torch.manual_seed(0)
    request.param().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, lora_alpha=8,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    return make_peft_run(tmp_path / "run", tmp_path / "base", lora)


@pytest.mark.parametrize("form", ["attached", "merged"])
def test_both_projections_move_from_the_base_to_the_checkpoint(
    run: Run, form: Literal["attached", "merged"]
) -> None:
    base = Path(run.base.model)
    atol = 0.0 if form == "attached" else 1e-5
    placement = Placement(run, form=form, device="cpu")
    for step in run.steps:
        placement.place(Point(step=step, alpha=1.0))
        expected = stock(base, run.folder(step))
        assert torch.allclose(probe(placement.model), expected, atol=atol, rtol=0)
    placement.place(Point.base())
    assert torch.equal(
        probe(placement.model), probe(AutoModelForCausalLM.from_pretrained(base).eval())
    )


@pytest.mark.parametrize("form", ["attached", "merged"])
def test_the_strength_of_a_block_counts_its_experts(
    run: Run, form: Literal["attached", "merged"]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.base.model)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted: Any = PeftModel.from_pretrained(model, str(run.folder(20)))
    tuned = adapted.merge_and_unload().state_dict()
    moved = [name for name in base if not torch.equal(base[name], tuned[name])]
    assert sum("experts" in name for name in moved) == 4
    found = Placement(run, form=form, device="cpu").strengths(20)
    for block in (0, 1):
        names = [name for name in moved if f".layers.{block}." in name]
        delta = sum(float((tuned[name] - base[name]).square().sum()) for name in names)
        size = sum(float(base[name].square().sum()) for name in names)
        assert found[block] == pytest.approx((delta / size) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("curve", ["native", "line"])
def test_points_between_are_the_same_in_both_forms_and_exported(
    run: Run, curve: Literal["native", "line"], tmp_path: Path
) -> None:
    point = Point(step=10, alpha=0.5)
    export(run, point, tmp_path / "adapter", form="adapter", device="cpu")
    placement = Placement(run, form="merged", curve=curve, device="cpu")
    placement.place(point)
    expected = stock(Path(run.base.model), tmp_path / "adapter")
    assert torch.allclose(probe(placement.model), expected, atol=1e-5, rtol=0)
    placement.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(probe(merged), probe(placement.model))
