"""Several strengths of one LoRA decoded in one batch: the same tokens, fewer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backtrack.errors import PlacementError
from backtrack.evaluate.engine import RunFacts
from backtrack.evaluate.language_model import CompletionLimits, Sampling
from backtrack.evaluate.objectives.lm_eval_model import AskedByLmEval
from backtrack.evaluate.torch_model import TorchModel
from backtrack.evaluate.transformers_engine import TransformersEngine
from backtrack.path.adapters.handles import Handle
from backtrack.path.backends import row_strengths
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

POINTS = [Point(step=20, alpha=alpha) for alpha in (0.25, 0.5, 1.0, 1.5)]
PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]
LIMITS = CompletionLimits(12, ())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sharing")
    base = make_base(folder / "base", width=64)
    return make_peft_run(folder / "run", base, configs()["lora-rs"])


def start(run: Run) -> TransformersEngine:
    return TransformersEngine(
        Placement(run, device="cpu"), None, RunFacts(run.base, run.final, run.path, batch_size=4)
    )


def ask(engine: TransformersEngine, **changes: Any) -> Any:
    """Token ids written at the engine's point."""
    asked: dict[str, Any] = {"limits": LIMITS, "sampling": None, **changes}
    return engine.language_model._complete(PROMPTS, asked["limits"], [], asked["sampling"])


def alone(placement: Placement, point: Point) -> Any:
    """The same, of a model that decodes one point at a time."""
    placement.place(point)
    model = TorchModel(placement.model, placement.tokenizer, 4)
    return model._complete(PROMPTS, LIMITS, [], None)


def counted(engine: TransformersEngine) -> list[int]:
    """Tokens of each forward pass from now on."""
    assert engine.language_model.reads_trees  # type: ignore[attr-defined]
    sizes: list[int] = []

    def count(_module: Any, inputs: Any, _output: Any) -> None:
        sizes.append(inputs[0].numel())

    engine.placed.model.get_input_embeddings().register_forward_hook(count)
    return sizes


def decoding_of(num_strengths: int, limits: CompletionLimits = LIMITS) -> list[int]:
    """Tokens of each pass when both prompts are completed at several strengths at once."""
    read = sum(len(prompt) - 1 for prompt in PROMPTS)
    return [read * num_strengths, *[2 * num_strengths] * limits.max_new_tokens]


ALONE = [8, *[2] * (LIMITS.max_new_tokens - 1)]
"""Likewise at one: the prompts share nothing, so they are padded to a batch of two rows."""


def test_expected_points_are_decoded_with_the_first_and_are_the_same(run: Run) -> None:
    one_by_one, shared = Placement(run, device="cpu"), start(run)
    rows = counted(shared)
    shared.expect(POINTS)
    answers = []
    for point in POINTS:
        shared.place(point)
        answers.append(ask(shared))
        assert answers[-1] == alone(one_by_one, point)
    assert rows == decoding_of(4)
    assert len({str(answer) for answer in answers}) > 1


def test_a_shared_batch_leaves_the_model_at_its_point(run: Run) -> None:
    engine, reference = start(run), Placement(run, device="cpu")
    engine.expect(POINTS)
    engine.place(POINTS[1])
    reference.place(POINTS[1])
    ask(engine)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(engine.placed.model(ids).logits, reference.model(ids).logits)


def test_what_was_decoded_is_never_given_to_another_question_or_point(run: Run) -> None:
    engine = start(run)
    rows = counted(engine)
    engine.expect(POINTS[:2])
    engine.place(POINTS[0])
    ask(engine)
    engine.place(POINTS[3])
    ask(engine)
    engine.place(POINTS[1])
    ask(engine, limits=CompletionLimits(3, ()))
    assert rows == [*decoding_of(2), *decoding_of(3), *decoding_of(2, CompletionLimits(3, ()))]


def test_sampled_completions_are_decoded_alone_and_the_same_at_any_time(run: Run) -> None:
    engine = start(run)
    rows = counted(engine)
    engine.expect(POINTS)
    engine.place(POINTS[0])
    sampling = Sampling(2, temperature=1.0)
    first = ask(engine, sampling=sampling)
    # Two samples of each prompt, which is read once.
    assert rows == [5, *[4] * LIMITS.max_new_tokens]
    assert ask(engine, sampling=sampling) == first


def test_a_batch_that_fills_the_device_is_decoded_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(row_strengths.MAX_ROWS, "cpu", 3)
    engine = start(run)
    rows = counted(engine)
    engine.expect(POINTS)
    engine.place(POINTS[0])
    ask(engine)
    assert rows == ALONE


@pytest.mark.parametrize(
    "name", ["lora-dora", "lora-bias", "lora-modules", "oft", "lora-own-bias"]
)
def test_what_scaling_does_not_cover_is_decoded_alone(name: str, run: Run, tmp_path: Path) -> None:
    other = make_peft_run(tmp_path / "run", Path(run.base.model), configs()[name])
    assert Placement(other, device="cpu").row_strengths is None


def test_lm_evals_stop_sequences_end_every_row(run: Run) -> None:
    from lm_eval.api.instance import Instance

    engine, reference = start(run), Placement(run, device="cpu")
    rows = counted(engine)
    engine.expect(POINTS)
    requests = [
        Instance(
            request_type="generate_until", doc={}, idx=0,
            arguments=(text, {"until": ["e", "7"], "max_gen_toks": 16}),
        )
        for text in ("abc", "xyz")
    ]  # fmt: skip
    answers = []
    for point in POINTS:
        engine.place(point)
        reference.place(point)
        single = TorchModel(reference.model, reference.tokenizer, 4)
        shared, one = (
            AskedByLmEval(model, None).generate_until(requests)
            for model in (engine.language_model, single)
        )
        assert shared == one
        assert not any("e" in text or "7" in text for text in shared)
        answers.append(tuple(shared))
    assert max(rows[1:]) == 8
    assert len(set(answers)) > 1


def test_an_engine_whose_move_failed_midway_is_at_no_point(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(run)
    engine.place(POINTS[0])
    with monkeypatch.context() as patch:
        patch.setattr(Handle, "write", lambda *_: torch.empty(-1))
        with pytest.raises(RuntimeError, match="negative dimension"):
            engine.place(POINTS[1])
    with pytest.raises(PlacementError, match="at no point"):
        _ = engine.point
    engine.place(POINTS[0])
    assert engine.point == POINTS[0]
    assert ask(engine) == alone(Placement(run, device="cpu"), POINTS[0])


def test_the_base_is_decoded_alone(run: Run) -> None:
    engine = start(run)
    rows = counted(engine)
    engine.expect(POINTS)
    assert ask(engine) == alone(Placement(run, device="cpu"), Point.base())
    assert rows == ALONE
