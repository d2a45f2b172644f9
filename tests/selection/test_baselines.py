from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from transformers import AutoModelForCausalLM

from backtrack.path.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import SearchSection
from backtrack.records import Baseline
from backtrack.run.directory import Run
from backtrack.selection.baselines import make, off_the_path, truncate
from tests.models import make_base, make_full_run, make_peft_run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("baselines")
    base = make_base(folder / "base", tied=False)
    lora: Any = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    steps = (10, 20, 30)
    return {
        "lora": make_peft_run(folder / "lora", base, lora, steps),
        "full": make_full_run(folder / "full", base, steps),
    }


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_mean_is_that_of_the_files_and_leaves_the_placement_where_it_was(
    runs: dict[str, Run], kind: str
):
    run = runs[kind]
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.5))
    before = probe(placement.model)
    model = make(run, placement, Baseline(kind="mean", steps=(20, 30)))
    assert placement.point == Point(step=20, alpha=0.5)
    assert torch.equal(probe(placement.model), before)

    loaded = [stock(run, step) for step in (20, 30)]
    with torch.no_grad():
        for first, second in zip(*(m.parameters() for m in loaded), strict=True):
            first.copy_((first + second) / 2)
    assert torch.allclose(probe(model), probe(loaded[0]), atol=1e-5)


def stock(run: Run, step: int) -> Any:
    """A checkpoint as anybody loads it."""
    if run.manifest.method.kind == "full":
        return AutoModelForCausalLM.from_pretrained(run.folder(step)).eval()
    base = AutoModelForCausalLM.from_pretrained(run.base.model)
    return PeftModel.from_pretrained(base, run.folder(step)).eval()


def test_intruders_are_reduced_as_stock_peft_does_it(runs: dict[str, Run]):
    run = runs["lora"]
    expected = stock(run, 30)
    reduce: Any = reduce_intruder_dimension
    reduce(expected, logging_sink=None)
    model = make(run, Placement(run), Baseline(kind="intruder", steps=(30,)))
    assert torch.allclose(probe(model), probe(expected.eval()), atol=1e-5)
    assert not torch.allclose(probe(model), probe(stock(run, 30)), atol=1e-3)


def test_truncation_finds_a_low_rank_signal_in_noise():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(60, 2, generator=generator) for _ in range(2))
    signal = left @ right.T
    noisy = signal + 0.3 * torch.randn(60, 60, generator=generator)
    found = truncate(noisy)
    assert torch.linalg.matrix_rank(found) == 2
    assert (found - signal).norm() < 0.5 * (noisy - signal).norm()


def test_a_truncated_full_checkpoint_lies_between_nothing_and_the_checkpoint(
    runs: dict[str, Run],
):
    run = runs["full"]
    model = make(run, Placement(run), Baseline(kind="truncated", steps=(30,)))
    tuned = dict(stock(run, 30).named_parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(run.base.model).named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    parameter = dict(model.named_parameters())[name]
    kept, whole = (parameter - base[name]).norm(), (tuned[name] - base[name]).norm()
    assert kept < whole
    norm = "model.norm.weight"
    assert torch.equal(dict(model.named_parameters())[norm], tuned[norm])


def test_what_a_run_has_no_use_for_is_left_out_and_said(runs: dict[str, Run]):
    section = SearchSection(baselines=("mean", "intruder", "truncated"))
    found, notes = off_the_path(runs["full"], section)
    assert [b.kind for b in found] == ["mean", "truncated"]
    assert "`intruder` is for LoRA only" in notes[0]
    found, notes = off_the_path(runs["lora"], section.model_copy(update={"mean_of": 9}))
    assert [b.kind for b in found] == ["intruder"]
    assert len(notes) == 2
