"""Checkpoints of a run may differ in their adapter's bookkeeping, not in what decides the path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import AdaLoraConfig, BOFTConfig, LoraConfig, PeftModel, VeraConfig
from transformers import AutoModelForCausalLM

from backtrack.errors import PlacementError
from backtrack.path.models.loading import probe
from backtrack.path.models.saving import sort_names
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.adapter_config import first_difference, path_fields
from backtrack.run.checkpoint_writer import config_digest
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

BOOKKEEPING: dict[str, Any] = {
    "peft_version": "0.9.0", "base_model_name_or_path": "/elsewhere/base", "lora_dropout": 0.1,
    "inference_mode": False, "task_type": None, "revision": "refs/pr/1",
    "auto_mapping": {"base_model_class": "X", "parent_library": "Y"}, "megatron_core": "other",
    "init_lora_weights": "gaussian", "modules_to_save": [],
}  # fmt: skip
PATH: dict[str, Any] = {
    "r": 8, "lora_alpha": 99, "target_modules": ["q_proj"], "use_dora": True, "use_rslora": True,
    "bias": "all", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2},
    "init_lora_weights": "pissa", "fan_in_fan_out": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return make_peft_run(folder / "run", make_base(folder / "base"), config)


@pytest.fixture(scope="module")
def saved(run: Run) -> dict[str, Any]:
    """The earlier checkpoint's configuration as it was saved."""
    values: dict[str, Any] = json.loads((run.folder(10) / "adapter_config.json").read_text())
    return values


def rewrite(run: Run, values: dict[str, Any]) -> None:
    (run.folder(10) / "adapter_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("field", BOOKKEEPING)
def test_bookkeeping_makes_no_difference(saved: dict[str, Any], field: str) -> None:
    assert first_difference(saved, saved | {field: BOOKKEEPING[field]}) is None
    assert path_fields(saved | {field: BOOKKEEPING[field]}) == path_fields(saved)


@pytest.mark.parametrize(("form", "curve"), [("attached", "native"), ("merged", "line")])
def test_an_earlier_checkpoint_with_other_bookkeeping_is_placed_exactly(
    run: Run, saved: dict[str, Any], form: Any, curve: Any
) -> None:
    rewrite(run, saved)
    base = AutoModelForCausalLM.from_pretrained(run.base.model)
    expected = probe(PeftModel.from_pretrained(base, str(run.folder(10))).eval())
    rewrite(run, saved | BOOKKEEPING)
    placement = Placement(run, form=form, curve=curve)
    placement.place(Point(step=10))
    torch.testing.assert_close(
        probe(placement.model), expected, atol=0 if form == "attached" else 1e-5, rtol=0
    )


def test_fields_that_an_earlier_release_did_not_have_are_their_defaults(
    run: Run, saved: dict[str, Any]
) -> None:
    old = ("r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path")
    rewrite(run, {name: saved[name] for name in old})
    saved_so = {"config": config_digest(run.folder(10))}
    run.add_entry(run.entry(10).model_copy(update=saved_so))
    Placement(run).place(Point(step=10))


@pytest.fixture(scope="module")
def placement(run: Run) -> Placement:
    return Placement(run)


@pytest.mark.parametrize("field", PATH)
def test_an_earlier_checkpoint_on_another_path_is_refused_by_the_fields_name(
    run: Run, saved: dict[str, Any], placement: Placement, field: str
) -> None:
    rewrite(run, saved | {field: PATH[field]})
    before = probe(placement.model)
    with pytest.raises(PlacementError, match=rf"step-00000010: {field} is .*last checkpoint"):
        placement.place(Point(step=10))
    assert torch.equal(probe(placement.model), before)


@pytest.mark.parametrize(
    ("one", "other", "field"),
    [
        (BOFTConfig(boft_dropout=0.1), BOFTConfig(), None),
        (BOFTConfig(boft_block_size=8), BOFTConfig(), "boft_block_size"),
        (VeraConfig(d_initial=0.2, vera_dropout=0.1), VeraConfig(), None),
        (VeraConfig(projection_prng_key=1), VeraConfig(), "projection_prng_key"),
        (AdaLoraConfig(total_step=9, tinit=1, deltaT=2), AdaLoraConfig(total_step=8), None),
        (AdaLoraConfig(total_step=9, init_r=3), AdaLoraConfig(total_step=9), "init_r"),
        (LoraConfig(modules_to_save=["a", "b"]), LoraConfig(modules_to_save=["b", "a"]), None),
        (LoraConfig(modules_to_save=["a"]), LoraConfig(modules_to_save=["b"]), "modules_to_save"),
    ],
)
def test_other_methods_have_bookkeeping_of_their_own(
    one: Any, other: Any, field: str | None
) -> None:
    difference = first_difference(one.to_dict(), other.to_dict())
    assert (difference and difference[0]) == field


def test_configurations_of_equal_adapters_are_equal_files(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    paths = [tmp_path / name / "adapter_config.json" for name in ("one", "other")]
    for path, targets in zip(paths, (["q_proj", "v_proj"], ["v_proj", "q_proj"]), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(saved | {"target_modules": targets}))
    sort_names(tmp_path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert json.loads(paths[0].read_text()) == saved | {"target_modules": ["q_proj", "v_proj"]}
