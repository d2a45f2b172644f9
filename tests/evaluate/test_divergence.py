"""The divergence from the base: over the whole vocabulary, 0 at the base, its items borrowed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig
from pydantic import ValidationError

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.engine import RunFacts
from backtrack.evaluate.shared_reading import divergence as module
from backtrack.evaluate.shared_reading.divergence import divergence
from backtrack.evaluate.torch_model import TorchModel
from backtrack.evaluate.transformers_engine import TransformersEngine
from backtrack.evaluate.vllm.model import VllmModel
from backtrack.formatting import said
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.selection.measure.items import Items
from tests.models import make_base, make_full_run, make_peft_run

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.records import Split
    from backtrack.run.directory import Run

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 3], [11, 12], [5], [20, 21, 22, 23, 24, 25, 26]]
POINTS = [Point(step=20, alpha=0.5), Point(step=10), Point(step=20, alpha=1.5)]
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)


def make_run(kind: str, folder: Path) -> Run:
    base = make_base(folder / "base", dtype="bfloat16" if kind == "bfloat16" else "float32")
    if kind == "full":
        return make_full_run(folder / "run", base)
    return make_peft_run(folder / "run", base, LORA)


@pytest.fixture(scope="module", params=["lora", "full", "bfloat16"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = make_run(request.param, tmp_path_factory.mktemp(request.param))
    placed = Placement(run, device="cpu")
    return TransformersEngine(placed, None, RunFacts(run.base, run.final, run.path, 2))


@torch.no_grad()
def alone(placed: Placement, point: Point, ids: list[int]) -> torch.Tensor:
    """Log-probabilities after each token of one prompt, in fp64."""
    placed.place(point)
    logits: torch.Tensor = placed.model(torch.tensor([ids])).logits[0]
    return logits.double().log_softmax(-1)


def test_it_is_the_mean_over_positions_of_the_divergence_over_the_vocabulary(engine: Any) -> None:
    tolerance = 2e-3 if engine.placed.model.dtype == torch.bfloat16 else 1e-5
    for point in POINTS:
        engine.place(point)
        before = [tensor.clone() for tensor in engine.placed.model.state_dict().values()]
        found = engine.language_model.divergences(PROMPTS)
        after = engine.placed.model.state_dict().values()
        assert all(map(torch.equal, before, after)), "it returns to the point bit for bit"
        for ids, value in zip(PROMPTS, found, strict=True):
            p = alone(engine.placed, Point.base(), ids)
            q = alone(engine.placed, point, ids)
            expected = float((p.exp() * (p - q)).sum(-1).mean())
            assert value == pytest.approx(expected, abs=tolerance)
            assert value > 0
        engine.place(point)


def test_at_alpha_zero_it_is_exactly_zero(engine: Any) -> None:
    for point in (Point(step=20), Point(step=20, alpha=0.0), Point(step=10, alpha=0.5)):
        engine.place(point)
        found = engine.language_model.divergences(PROMPTS)
        assert (found == [0.0] * len(PROMPTS)) == point.is_base


def test_what_does_not_fit_in_memory_is_read_again_and_is_the_same(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Point] = []
    place = engine.placed.place

    def noting(point: Point) -> None:
        places.append(point)
        place(point)

    monkeypatch.setattr(engine.placed, "place", noting)
    vocabulary = engine.placed.model.config.vocab_size

    def measured(share: float, chunk_tokens: int) -> tuple[list[list[float]], int]:
        monkeypatch.setattr(module, "SHARE", share)
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk_tokens * 4 * vocabulary)
        model = engine.asked(engine.placed.model)
        found = []
        for point in POINTS:
            engine.place(point)
            places.clear()
            found.append(model.divergences(PROMPTS))
        return found, places.count(Point.base())

    kept, num_last = measured(0.25, 8)
    assert num_last == 0, "the base is visited at the first point alone"
    again, num_last = measured(0.0, 8)
    assert num_last > 1, "every chunk visits the base"
    assert again == kept


def test_logits_of_minus_infinity_and_equal_ones_are_no_divergence() -> None:
    base = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 0.0]])
    assert divergence(base, base) == [0.0, 0.0]
    far = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, -torch.inf]])
    assert divergence(base, far)[0] == 0.0
    assert divergence(base, far)[1] == float("inf")


def test_other_answerers_say_that_they_cannot(engine: Any) -> None:
    with pytest.raises(ObjectiveError, match=r"gives those of a few tokens.*engine: transformers"):
        object.__new__(VllmModel).divergences(PROMPTS)
    bare = TorchModel(engine.placed.model, engine.tokenizer, 2)
    with pytest.raises(ObjectiveError, match=r"this model is by itself.*Leave out"):
        bare.divergences(PROMPTS)


def recipe_of(folder: Path, *more: dict[str, Any], **given: Any) -> Recipe:
    sums = [
        {"prompt": f"{i} plus 1 is", "completion": f" {i + 1}", "g": i // 2} for i in range(40)
    ]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    common = {"kind": "examples", "path": str(folder / "sums.jsonl"), "max_new_tokens": 3}
    return Recipe.model_validate(
        {
            "name": "mine",
            "base": "base",
            "objectives": [{**common, "role": "target", "name": "sums"}, *more],
            "search": {"items": {"selection": 12, "report": 8}, "trials": 0, "checkpoints": 0}
            | {"alphas": [0.5]},
            **given,
        }
    )


def general(folder: Path, **given: Any) -> dict[str, Any]:
    return {
        "kind": "examples", "role": "general", "path": str(folder / "sums.jsonl"), "score": "nll",
        "name": "loss", **given,
    }  # fmt: skip


def test_borrowed_items_are_searched_and_reported_where_their_lenders_are(
    tmp_path: Path, engine: Any
) -> None:
    recipe = recipe_of(
        tmp_path,
        {"kind": "divergence"},
        general(tmp_path, cluster="g"),
        general(tmp_path, name="other"),
    )
    objectives = build_objectives(recipe, engine.tokenizer)
    assert [o.info.name for o in objectives] == ["sums", "divergence", "loss", "other"]
    far = objectives[1]
    assert (far.info.role, far.info.unit, far.info.direction) == (
        "general", "nats a token", "minimize",
    )  # fmt: skip
    assert len(far.item_ids) == 80
    assert far.texts() == ()
    items = Items.split(recipe.search, objectives)
    splits: tuple[tuple[Split, int], ...] = (("selection", 12), ("report", 8))
    for split, num in splits:
        drawn = items.of(split)["divergence"]
        assert len(drawn) == num
        for item_id in drawn:
            lender, lent = far.lent[item_id]
            assert lent in items.of(split)[lender]
        assert {far.lent[i][0] for i in drawn} == {"loss", "other"}
    assert items.clusters["divergence"]
    for item_id, first in items.clusters["divergence"].items():
        assert far.lent[first][1] == objectives[2].clusters[far.lent[item_id][1]]


def test_prompts_of_a_file_are_read_and_others_are_refused_by_name(
    tmp_path: Path, engine: Any
) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo and two\n")
    (tmp_path / "asked.jsonl").write_text('{"ask": "three"}\n{"ask": "four"}\n')
    recipe = recipe_of(
        tmp_path,
        {"kind": "divergence", "path": str(tmp_path / "prompts.txt")},
        {
            "kind": "divergence",
            "path": str(tmp_path / "asked.jsonl"),
            "prompt": "ask",
            "name": "b",
        },
    )
    _, lines, asked = build_objectives(recipe, engine.tokenizer)
    assert lines.texts() == ("one", "two and two")
    assert asked.texts() == ("three", "four")
    assert lines.item_ids == ("divergence/0", "divergence/1")
    assert lines.info.fingerprint != asked.info.fingerprint
    engine.place(Point(step=20))
    with engine.noting() as noted:
        first, second = lines.measure(engine.language_model, lines.item_ids)
    assert [said(None, noted[item_id]) for item_id in lines.item_ids] == [("",), ("",)]
    assert lines.measure(engine.language_model, lines.item_ids[1:]) == pytest.approx((second,))
    with pytest.raises(ObjectiveError, match="no other objective of `role: general` has prompts"):
        build_objectives(recipe_of(tmp_path, {"kind": "divergence"}), engine.tokenizer)
    with pytest.raises(ValidationError, match="it is `role: general`"):
        recipe_of(tmp_path, {"kind": "divergence", "role": "target"})
    with pytest.raises(ValidationError, match="engine: transformers"):
        recipe_of(tmp_path, {"kind": "divergence"}, engine={"kind": "vllm"})
    assert first > 0
