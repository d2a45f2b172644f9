"""Several strengths of one LoRA decoded in one batch: the same tokens, fewer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from backtrack.path.backends import shared_decoding as sharing
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

POINTS = [Point(step=20, alpha=alpha) for alpha in (0.25, 0.5, 1.0, 1.5)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sharing")
    base = make_base(folder / "base", width=64)
    return make_peft_run(folder / "run", base, configs()["lora-rs"])


def ask(model: Any, **changes: Any) -> list[list[int]]:
    ids = torch.tensor([[5, 6, 7, 8], [0, 9, 10, 11]])
    asked = {
        "input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 12,
        "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    tokens: list[list[int]] = model.generate(**(asked | changes)).tolist()
    return tokens


def counted(placement: Placement, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each batch that is really decoded."""
    shared: Any = placement._sharing
    rows: list[int] = []
    alone = shared._alone

    def counting(**asked: Any) -> Any:
        rows.append(len(asked["input_ids"]))
        return alone(**asked)

    monkeypatch.setattr(shared, "_alone", counting)
    return rows


def test_expected_points_are_decoded_with_the_first_and_are_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = Placement(run)
    shared = Placement(run)
    rows = counted(shared, monkeypatch)
    shared.expect(POINTS)
    answers = []
    for point in POINTS:
        one_by_one.place(point)
        shared.place(point)
        answers.append(ask(shared.model))
        assert answers[-1] == ask(one_by_one.model)
    assert rows == [8]
    assert len({str(answer) for answer in answers}) > 1


def test_a_shared_batch_leaves_the_model_where_it_stands(run: Run) -> None:
    placement, reference = Placement(run), Placement(run)
    placement.expect(POINTS)
    for each in (placement, reference):
        each.place(POINTS[1])
    ask(placement.model)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(placement.model(ids).logits, reference.model(ids).logits)


def test_what_was_decoded_is_never_given_to_another_question_or_point(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement(run)
    rows = counted(placement, monkeypatch)
    placement.expect(POINTS[:2])
    placement.place(POINTS[0])
    ask(placement.model)
    placement.place(POINTS[3])
    ask(placement.model)
    placement.place(POINTS[1])
    ask(placement.model, max_new_tokens=3)
    assert rows == [4, 6, 4]


@pytest.mark.parametrize("changes", [{"do_sample": True}, {"num_beams": 2}])
def test_sampling_and_beams_are_decoded_alone(
    changes: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement(run)
    rows = counted(placement, monkeypatch)
    placement.expect(POINTS)
    placement.place(POINTS[0])
    ask(placement.model, **changes)
    assert rows == [2]


def test_a_batch_that_fills_the_device_is_decoded_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sharing.MAX_ROWS, "cpu", 3)
    placement = Placement(run)
    rows = counted(placement, monkeypatch)
    placement.expect(POINTS)
    placement.place(POINTS[0])
    ask(placement.model)
    assert rows == [2]


@pytest.mark.parametrize(
    "name", ["lora-dora", "lora-bias", "lora-modules", "oft", "lora-own-bias"]
)
def test_what_scaling_does_not_cover_is_decoded_alone(name: str, run: Run, tmp_path: Path) -> None:
    other = make_peft_run(tmp_path / "run", Path(run.base.model), configs()[name])
    assert Placement(other)._sharing is None


def test_lm_evals_stop_sequences_end_every_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's criterion keeps one flag a row of the batch it was made for."""
    placement, alone = Placement(run), Placement(run)
    rows = counted(placement, monkeypatch)
    placement.expect(POINTS)
    requests = [
        Instance(
            request_type="generate_until", doc={}, idx=0,
            arguments=(text, {"until": ["e", "7"], "max_gen_toks": 16}),
        )
        for text in ("abc", "xyz")
    ]  # fmt: skip
    answers = []
    for point in POINTS:
        placement.place(point)
        alone.place(point)
        found = [
            HFLM(pretrained=each.model, tokenizer=each.tokenizer, batch_size=2).generate_until(
                requests, disable_tqdm=True
            )
            for each in (placement, alone)
        ]
        assert found[0] == found[1]
        answers.append(tuple(found[0]))
    assert rows == [8]
    assert len(set(answers)) > 1


def test_the_base_is_decoded_alone(run: Run) -> None:
    placement = Placement(run)
    placement.expect(POINTS)
    base = AutoModelForCausalLM.from_pretrained(run.base.model).eval()
    assert ask(placement.model) == ask(base)
