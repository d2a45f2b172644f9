from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from transformers import AutoModelForCausalLM

from backtrack.evaluate.language_model import LanguageModel
from backtrack.evaluate.objectives.objective import Objective
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe, SearchSection
from backtrack.records.selection import Baseline
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.selection.measure.baselines import off_the_path
from backtrack.selection.measurers.baseline_models import make_baseline_model, truncate_svd
from tests.models import make_base, make_full_run, make_peft_run
from tests.selection.fakes import make_info

if TYPE_CHECKING:
    from collections.abc import Sequence

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
def test_the_mean_is_that_of_the_files_and_the_placement_returns_to_its_point(
    runs: dict[str, Run], kind: str
):
    run = runs[kind]
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.5))
    before = probe(placement.model)
    model = make_baseline_model(run, placement, Baseline(kind="mean", steps=(20, 30)))
    assert placement.point == Point(step=20, alpha=0.5)
    assert torch.equal(probe(placement.model), before)

    loaded = [stock(run, step) for step in (20, 30)]
    with torch.no_grad():
        for first, second in zip(*(m.parameters() for m in loaded), strict=True):
            first.copy_((first + second) / 2)
    assert torch.allclose(probe(model), probe(loaded[0]), atol=1e-5)


def stock(run: Run, step: int) -> Any:
    """A checkpoint loaded by stock transformers and PEFT."""
    if run.manifest.method.kind == "full":
        return AutoModelForCausalLM.from_pretrained(run.folder(step)).eval()
    base = AutoModelForCausalLM.from_pretrained(run.base.model)
    return PeftModel.from_pretrained(base, run.folder(step)).eval()


def test_intruders_are_reduced_as_stock_peft_does_it(runs: dict[str, Run]):
    run = runs["lora"]
    expected = stock(run, 30)
    reduce: Any = reduce_intruder_dimension
    reduce(expected, logging_sink=None)
    model = make_baseline_model(run, Placement(run), Baseline(kind="intruder", steps=(30,)))
    assert torch.allclose(probe(model), probe(expected.eval()), atol=1e-5)
    assert not torch.allclose(probe(model), probe(stock(run, 30)), atol=1e-3)


def test_truncation_finds_a_low_rank_signal_in_noise():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(60, 2, generator=generator) for _ in range(2))
    signal = left @ right.T
    noisy = signal + 0.3 * torch.randn(60, 60, generator=generator)
    denoised = truncate_svd(noisy)
    assert torch.linalg.matrix_rank(denoised) == 2
    assert (denoised - signal).norm() < 0.5 * (noisy - signal).norm()


def test_a_truncated_full_checkpoint_lies_between_nothing_and_the_checkpoint(
    runs: dict[str, Run],
):
    run = runs["full"]
    model = make_baseline_model(run, Placement(run), Baseline(kind="truncated", steps=(30,)))
    tuned = dict(stock(run, 30).named_parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(run.base.model).named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    parameter = dict(model.named_parameters())[name]
    truncated, whole = (parameter - base[name]).norm(), (tuned[name] - base[name]).norm()
    assert truncated < whole
    norm = "model.norm.weight"
    assert torch.equal(dict(model.named_parameters())[norm], tuned[norm])


def test_baselines_that_a_run_cannot_have_are_left_out_with_a_note(runs: dict[str, Run]):
    section = SearchSection(baselines=("mean", "intruder", "truncated"))
    found, notes = off_the_path(runs["full"], section)
    assert [b.kind for b in found] == ["mean", "truncated"]
    assert "`intruder` is left out: it is for LoRA only" in notes[0]
    found, notes = off_the_path(runs["lora"], section.model_copy(update={"mean_of": 9}))
    assert [b.kind for b in found] == ["intruder"]
    assert len(notes) == 2


class Likelihoods(Objective):
    """Mean probability the model gives each item's tokens."""

    def __init__(self, name: str, role: str, num_items: int = 40) -> None:
        self.info = make_info(name, role)
        self.item_ids = tuple(f"{name}/{i:03d}" for i in range(num_items))
        self.num_calls = 0

    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        self.num_calls += 1
        with model.in_process() as torch_model:
            return self.of_model(torch_model, item_ids)

    def of_model(self, model: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        length, offset = 6, 7 if self.info.role == "target" else 31
        numbers = torch.tensor([int(i.rpartition("/")[2]) for i in item_ids])[:, None]
        ids = (numbers * 5 + torch.arange(length) * offset) % model.config.vocab_size
        with torch.no_grad():
            probabilities = model(input_ids=ids).logits[:, :-1].softmax(-1)
        return tuple(probabilities.gather(-1, ids[:, 1:, None]).mean(dim=(1, 2)).tolist())


def test_baselines_off_the_path_are_in_the_study_and_in_the_selection(runs: dict[str, Run]):
    run, kinds = runs["lora"], ("checkpoint", "grid", "mean", "intruder")
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "base": run.base.model,
            "search": {
                "alphas": (0.5,),
                "checkpoints": 1,
                "trials": 0,
                "baselines": kinds,
                "items": {"selection": 20, "report": 20},
            },
        }
    )
    objectives = [Likelihoods("sums", "target"), Likelihoods("prose", "general")]
    placement = Placement(run)
    choice = select(run, recipe=recipe, placement=placement, objectives=objectives)
    rows = {row.baseline.kind: row for row in choice.selection.baselines}
    assert tuple(rows) == kinds

    storage = f"sqlite:///{run.path}/study.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    added = {t.user_attrs["point"]: t for t in trials if t.user_attrs["origin"] == "baseline"}
    assert set(added) == {"mean of steps 10, 20, 30", "intruders reduced: step 30"}
    asked: dict[str, set[str]] = defaultdict(set)
    for m in run.measurements():
        if m.split == "selection":
            asked[m.objective.name] |= set(m.item_ids)
    for baseline in (rows["mean"].baseline, rows["intruder"].baseline):
        model = make_baseline_model(run, placement, baseline)
        for value, objective in zip(added[str(baseline)].values, objectives, strict=True):
            again = objective.of_model(model, sorted(asked[objective.info.name]))
            assert value == pytest.approx(100 * sum(again) / len(again), rel=1e-5)

    calls = [objective.num_calls for objective in objectives]
    select(run, weight=0.9, recipe=recipe, placement=placement, objectives=objectives)
    assert [objective.num_calls for objective in objectives] == calls


def test_under_vllm_baselines_that_are_not_points_are_left_out_with_a_note(runs: dict[str, Run]):
    section = SearchSection(baselines=("checkpoint", "mean", "intruder"))
    found, notes = off_the_path(runs["lora"], section, is_in_process=False)
    assert not found
    assert [note.split("`")[1] for note in notes] == ["mean", "intruder"]
