"""A real vLLM engine beside transformers: at every point the same tokens, likelihoods, scores."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from backtrack.errors import EngineError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.language_model import CompletionLimits, Sampling, ScoredSequence
from backtrack.evaluate.transformers_engine import TransformersEngine
from backtrack.evaluate.vllm.engine import VllmEngine
from backtrack.evaluate.vllm.process import VllmProcess
from backtrack.point import Point
from backtrack.selection.search.driver import search
from tests.evaluate.vllm.conftest import ENGINE, by_transformers, recipe_of, start, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.run.directory import Run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.filterwarnings("ignore"),
]

POINTS = [
    Point.base(),
    Point(step=20, alpha=0.3),
    Point(step=20),
    Point(step=10, alpha=1.2),
    Point(step=20, alpha=0.8, profile="depth(0.5,1)"),
    Point(step=20, alpha=1, profile="modules(1,0.2)"),
]
PROMPTS = ["the quick brown", "a", "Hello, wor", "12+30=", "zzz"]
LIMITS = CompletionLimits(12, ("\n", "q"))


def answers(engine: VllmEngine | TransformersEngine, point: Point) -> Any:
    engine.place(point)
    model = engine.language_model
    prompts = [encode(model.tokenizer, prompt) for prompt in PROMPTS]
    scored = [ScoredSequence([*ids, 5, 6, 7, 8], len(ids)) for ids in prompts]
    texts = [each[0] for each in model.complete(prompts, LIMITS)]
    return texts, [likelihood.log_likelihood for likelihood in model.score(scored)]


def engines() -> set[int]:
    """Processes of vLLM that this one started and that still run."""
    every = psutil.Process().children(recursive=True)
    return {p.pid for p in every if p.status() != "zombie" and p.name().startswith("VLLM")}


def kill(pids: set[int]) -> None:
    """End processes as the system does when memory runs out."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


def counted(process: VllmProcess, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts of each batch that the engine is really given."""
    sizes: list[int] = []
    ask = process.generate

    def counting(prompts: Any, *more: Any) -> Any:
        sizes.append(len(prompts))
        return ask(prompts, *more)

    monkeypatch.setattr(process, "generate", counting)
    return sizes


def test_strengths_steps_and_profiles_in_one_batch_answer_as_transformers_at_each(
    served: VllmEngine, reference: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(served.process, monkeypatch)
    served.expect(POINTS)
    for point in POINTS:
        texts, nats = answers(served, point)
        expected_texts, expected_nats = answers(reference, point)
        assert texts == expected_texts, point
        assert nats == pytest.approx(expected_nats, abs=1e-4), point
    assert sizes == [len(POINTS) * len(PROMPTS)] * 2  # completions of all points, then scores
    assert len({tuple(answers(reference, point)[0]) for point in POINTS}) > 2


def test_every_objective_scores_item_by_item_as_with_transformers(
    served: VllmEngine, reference: TransformersEngine, toys: Any, tmp_path: Path
) -> None:
    reference.place(POINTS[1])
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    ids = [encode(reference.tokenizer, prompt) for prompt in prompts]
    completions = reference.language_model.complete(ids, CompletionLimits(4, ()))
    texts = [each[0] for each in completions]
    records = [
        {"prompt": p, "completion": t.strip() or "x", "choices": [t.strip() or "x", "yy", "zz"]}
        for p, t in zip(prompts, texts, strict=True)
    ]
    path = write_jsonl(tmp_path / "items.jsonl", records)
    of_file: dict[str, Any] = {"kind": "examples", "path": path, "max_new_tokens": 4, "stop": []}
    of_task = {"kind": "lm_eval", "include_path": toys.folder}
    prose = tmp_path / "prose.txt"
    prose.write_text("some words that a model reads one after the other " * 20)
    asked = [
        {**of_file, "name": "exact"},
        {**of_file, "name": "choice", "score": "choice"},
        {**of_file, "name": "nll", "score": "nll"},
        {"kind": "text", "path": str(prose), "window_tokens": 32},
        {**of_task, "task": "toy_next", "metric": "exact_match", "filter": "first-letter"},
        {**of_task, "task": "toy_choice", "metric": "acc"},
    ]
    by_engine = build_objectives(recipe_of(asked, ENGINE), served.tokenizer)
    by_hand = build_objectives(recipe_of(asked), reference.tokenizer)
    served.expect(POINTS[:3])
    right = 0.0
    for point in POINTS[:3]:
        served.place(point)
        reference.place(point)
        for ours, theirs in zip(by_engine, by_hand, strict=True):
            assert ours.info == theirs.info
            items = ours.item_ids[:20]
            found = ours.measure(served.language_model, items)
            expected = theirs.measure(reference.language_model, items)
            assert found == pytest.approx(expected, abs=1e-4), (point, ours.info.name)
            right += sum(found) if ours.info.name == "exact" else 0
    assert 20 <= right < 60  # all right where the answers come from, not so elsewhere


def test_sampled_answers_are_averaged_have_their_own_seeds_and_do_not_hang_on_company(
    served: VllmEngine, toys: Any, tmp_path: Path
) -> None:
    records = [{"prompt": p, "completion": "a"} for p in PROMPTS]
    path = write_jsonl(tmp_path / "letters.jsonl", records)
    sampling = {"samples": 24, "temperature": 1.0}
    asked = [
        {"kind": "examples", "path": path, "max_new_tokens": 1, "sampling": sampling},
        {"kind": "lm_eval", "include_path": toys.folder, "task": "toy_next",
         "metric": "exact_match", "filter": "first-letter", "sampling": sampling},
    ]  # fmt: skip
    for objective in build_objectives(recipe_of(asked, ENGINE), served.tokenizer):
        items = objective.item_ids[:5]
        served.expect([])
        served.place(POINTS[1])
        alone = objective.measure(served.language_model, items)
        served.place(POINTS[2])
        served.expect(POINTS[:4])
        other = objective.measure(served.language_model, items)
        served.place(POINTS[1])
        assert objective.measure(served.language_model, items) == alone
        assert all(score * 24 == pytest.approx(round(score * 24)) for score in (*alone, *other))
    prompts, limits = [[5, 6, 7], [5, 6, 8]], CompletionLimits(6, ())
    five = Sampling(5, temperature=1.0)
    drawn = served.language_model._complete(prompts, limits, [], five)
    assert len({tuple(ids) for each in drawn for ids in each}) == 10
    again = served.language_model._complete(prompts[1:], limits, [], five)
    assert again == drawn[1:]
    reseeded = served.language_model._complete(prompts, limits, [], five._replace(seed=1))
    assert reseeded != drawn


def test_a_search_goes_on_in_a_fresh_engine_when_its_engine_is_killed(
    lora_run: Run, served: VllmEngine, reference: TransformersEngine, tmp_path: Path
) -> None:
    records = [{"prompt": f"{p} {i}", "completion": "abc"} for i in range(8) for p in PROMPTS]
    path = write_jsonl(tmp_path / "items.jsonl", records)
    asked = [
        {"kind": "examples", "path": path, "score": "nll", "name": "one"},
        {"kind": "examples", "path": path, "score": "nll", "name": "two", "prompt": "so {prompt}"},
    ]
    section = {
        "search": {
            "trials": 1, "alphas": [0.5], "checkpoints": 0, "batch_size": 4,
            "items": {"selection": 16, "report": 8}, "racing": {"shares": []},
        }
    }  # fmt: skip
    recipe = recipe_of(asked, ENGINE)
    base = {"model": lora_run.base.model}
    recipe = recipe.model_validate({**recipe.model_dump(), **section, "base": base})
    starts = served.process.num_starts
    seen: list[Any] = []

    def kill_once(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 3:
            kill(engines())

    served.expect([])
    found = search(lora_run, placement=served, recipe=recipe, on_progress=kill_once)
    assert served.process.num_starts == starts + 1
    assert len(found) == 4 * 2
    assert lora_run.measurements() == found
    by_hand = {o.info.name: o for o in build_objectives(recipe_of(asked), reference.tokenizer)}
    for m in found:
        reference.place(m.point)
        expected = by_hand[m.objective.name].measure(reference.language_model, m.item_ids)
        assert m.scores == pytest.approx(expected, abs=1e-4), m.point
        assert m.num_tokens


@pytest.mark.parametrize("kind", ["full", "oft"])
def test_weights_replaced_in_place_answer_as_transformers_and_after_a_kill_too(
    merged_runs: dict[str, Run], kind: str
) -> None:
    before = engines()
    engine = start(merged_runs[kind])
    try:
        assert engine.form == "merged"
        reference = by_transformers(merged_runs[kind], "merged")
        points = [Point(step=20), Point(step=10, alpha=0.5), Point.base(), Point(step=20)]
        expected = [answers(reference, point) for point in points]
        found = [answers(engine, point) for point in points]
        if kind == "full":
            kill(engines() - before)
            found.append(answers(engine, points[1]))
            expected.append(expected[1])
            assert engine.process.num_starts == 2
    finally:
        engine.close()
    for (texts, nats), (expected_texts, expected_nats) in zip(found, expected, strict=True):
        assert texts == expected_texts
        assert nats == pytest.approx(expected_nats, abs=1e-4)


def test_an_engine_that_leaves_a_tied_head_behind_is_refused(
    merged_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, written = engines(), VllmEngine._written
    monkeypatch.setattr(VllmEngine, "_written", lambda self, point, **_: written(self, point))
    with pytest.raises(EngineError, match=r"at step 20 .*: log-likelihoods .* nats apart"):
        start(merged_runs["full"])
    deadline = time.monotonic() + 20
    while engines() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not engines() - before


def test_too_little_memory_is_one_error_that_names_the_setting(lora_run: Run) -> None:
    llm = {"enforce_eager": True}
    with pytest.raises(EngineError, match=r"lack of memory: .*engine\.memory_share") as caught:
        start(lora_run, memory_share=1.0, llm=llm)
    assert "engine.log" in str(caught.value)
