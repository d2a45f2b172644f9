"""Models that accelerate spreads over devices: hooks move what each module reads and returns.

Here all the devices are one: the hooks are accelerate's, and `tests/gpu` has the cards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backtrack.path.models import loading
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_manifest

pytestmark = pytest.mark.filterwarnings("ignore")

SPREAD = dict.fromkeys(
    ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb",
     "lm_head"], "cpu",
)  # fmt: skip


def spread(model: Any, device: torch.device, _folder: Path) -> None:
    if device.type != "meta":
        dispatch_model(model, SPREAD, force_hooks=True)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("spread") / "base", tied=request.param)


def trained(base: Path, method: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    if method == "full":
        jitter(model, 0.05, seed=1, only_trainable=False)
        return model.eval()
    saved = ["embed_tokens", "lm_head"] if method == "lora and embeddings" else None
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=4, modules_to_save=saved
    )
    model = get_peft_model(model, config)
    jitter(model, 0.05, seed=1)
    return model.eval()


@pytest.mark.parametrize(
    ("method", "form"),
    [("full", "merged"), ("lora", "attached"), ("lora", "merged"),
     ("lora and embeddings", "attached"), ("lora and embeddings", "merged")],
)  # fmt: skip
def test_a_spread_model_whose_vocabulary_grew_moves_as_one_on_a_device(
    base: Path, tmp_path: Path, method: str, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = trained(base, method)
    run = Run.create(tmp_path / "run", make_manifest(base, method.split()[0]))
    write_checkpoint(run, 20, lambda path: stock.save_pretrained(str(path)))
    monkeypatch.setattr(loading, "_require_on_devices", spread)
    placement = Placement(run, form=form)
    assert any(hasattr(module, "_hf_hook") for module in placement.model.modules())
    monkeypatch.undo()
    whole = Placement(run, form=form)
    for point in (run.final, Point(step=20, alpha=0.4), Point.base()):
        placement.place(point)
        whole.place(point)
        assert torch.equal(probe(placement.model), probe(whole.model))
        assert placement.distance(point) == whole.distance(point)
    placement.place(Point(step=20, alpha=0.4))
    placement.save(tmp_path / "saved")
    whole.place(Point(step=20, alpha=0.4))
    whole.save(tmp_path / "whole")
    name = next(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
