"""Stock tasks and the small English model, where the benchmark documents are at hand."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.objectives import lm_eval_library as library
from tests.bench import reading
from tests.evaluate.asking import as_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backtrack.recipe import Recipe

pytestmark = pytest.mark.shared

GSM8K = {
    "kind": "lm_eval",
    "task": "gsm8k",
    "metric": "exact_match",
    "filter": "strict-match",
    "num_fewshot": 1,
    "max_gen_toks": 8,
}
BBH = {"kind": "lm_eval", "task": "leaderboard_bbh_*", "metric": "acc_norm"}
NQ = {"kind": "lm_eval", "task": "nq_open", "metric": "exact_match", "filter": "remove_whitespace"}


@pytest.fixture
def build(toys: Any, recipe_of: Callable[..., Recipe]) -> Callable[..., Any]:
    """The first objective; the index of tasks is the other tests', which takes long to build."""

    def first(settings: dict[str, Any], tokenizer: Any, batch_size: int = 4) -> Any:
        settings = {"include_path": toys.folder, **settings}
        return build_objectives(recipe_of(settings, batch_size=batch_size), tokenizer)[0]

    return first


@pytest.fixture
def documents(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documents' folder, as working directory."""
    monkeypatch.chdir(shared / "data")
    return shared / "data"


@pytest.fixture(scope="module")
def english(shared: Path) -> tuple[Any, Any]:
    folder = shared / "models" / "tiny-en"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_gsm8k_documents_and_prompts_are_lm_evals(documents, english, build, monkeypatch):
    model, tokenizer = english
    objective = build(GSM8K, tokenizer)
    records = read(documents / "openai/gsm8k/main/test.jsonl")
    assert objective.item_ids == tuple(f"gsm8k/{n}" for n in range(len(records)))
    answers = []
    real: Any = vars(library)["evaluate"]

    def keep(*args: Any, **kwargs: Any) -> Any:
        answers.append(real(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(library, "evaluate", keep)
    for _ in range(2):
        objective.measure(as_model(model, tokenizer), ["gsm8k/900", "gsm8k/17"])
    for answer in answers:
        for sample in answer["samples"]["gsm8k"]:
            asked = records[sample["doc_id"]]["question"]
            assert sample["doc"]["question"] == asked
            assert sample["arguments"][0][0].endswith(f"Question: {asked}\nAnswer:")
            assert sample["arguments"][0][1]["max_gen_toks"] == 8
    first, second = ([s["arguments"] for s in answer["samples"]["gsm8k"]] for answer in answers)
    assert first == second


def test_leaderboard_bbh_is_scored_by_document(documents, english, build):
    model, tokenizer = english
    objective = build(BBH, tokenizer, batch_size=2)
    tasks = {item.rpartition("/")[0] for item in objective.item_ids}
    assert len(tasks) == 24
    asked = ["leaderboard_bbh_hyperbaton/249", "leaderboard_bbh_navigate/3"]
    scores = objective.measure(as_model(model, tokenizer), asked)
    assert set(scores) <= {0.0, 1.0}
    assert objective.measure(as_model(model, tokenizer), asked[::-1]) == scores[::-1]
    listed = read(documents / "SaylorTwift/bbh/hyperbaton/test.jsonl")
    held = objective._tasks["leaderboard_bbh_hyperbaton"].eval_docs
    assert [document["input"] for document in held] == [record["input"] for record in listed]


def test_nq_open_generates_and_scores(documents, english, build):
    model, tokenizer = english
    objective = build({**NQ, "max_gen_toks": 6}, tokenizer)
    assert (
        len(objective.measure(as_model(model, tokenizer), ["nq_open/3500", "nq_open/3001"])) == 2
    )


def test_a_filter_the_stock_task_lacks_is_refused_with_those_it_has(documents, english, build):
    with pytest.raises(ObjectiveError, match=r"'gsm8k' has no filter.*strict-match, flexible"):
        build({**GSM8K, "filter": "none"}, english[1])


def test_the_small_model_finds_its_own_language_likelier_than_noise(documents, english, recipe_of):
    model, tokenizer = english
    prose = {
        "kind": "text",
        "path": str(documents / "tinyshakespeare/input.txt"),
        "start": 0.9,
        "max_items": 4,
    }
    problems = {
        "kind": "examples",
        "path": "openai/gsm8k",
        "subset": "main",
        "split": "test[:4]",
        "prompt": "Question: {question}\nAnswer:",
        "completion": " {answer}",
        "score": "nll",
    }
    bits, nats = (
        objective.measure(as_model(model, tokenizer), objective.item_ids)
        for objective in build_objectives(recipe_of(prose, problems), tokenizer)
    )
    assert all(1.0 < score < 3.5 for score in bits)
    assert all(2.0 < score < 5.5 for score in nats)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bbh_tasks", "num_documents"),
    [("bbh", "[cdlr]*", 1), ("gsm8k", "*", 2), ("nq_open", "*", 6)],
)
def test_answers_are_those_of_lm_evals_own_model_in_fp32(
    documents, shared, name, bbh_tasks, num_documents
):
    model, tokenizer = reading.load(shared / "models" / "tiny-en", "float32")
    tasks = reading.load_tasks(name, [bbh_tasks], max_gen_toks=12)
    ours, stock = (
        reading.answer(lm, model, tasks, num_documents)
        for lm in (reading.our_model(model, tokenizer), reading.stock_model(model, tokenizer, 2))
    )
    assert len(ours.responses) >= num_documents
    assert reading.gap(ours, stock) < 1e-4
    assert reading.num_equal(ours, stock) == len(stock.responses)
    assert ours.num_tokens < stock.num_tokens if name == "bbh" else True


def test_ifevals_instructions_are_items_and_its_documents_are_clusters(
    documents, english, build, monkeypatch
):
    monkeypatch.setenv("NLTK_DATA", str(documents / "nltk_data"))
    model, tokenizer = english
    objective = build(
        {
            "kind": "lm_eval",
            "task": "ifeval",
            "metric": "inst_level_strict_acc",
            "max_gen_toks": 16,
        },
        tokenizer,
    )
    records = read(documents / "google/IFEval/ifeval_input_data.jsonl")
    counts = Counter(objective.clusters[item_id] for item_id in objective.item_ids)
    assert list(counts.values()) == [len(each["instruction_id_list"]) for each in records]
    asked = [i for i in objective.item_ids if i.partition("/")[2].partition(".")[0] in "0123"]
    scores = objective.measure(as_model(model, tokenizer), asked)
    assert set(scores) <= {0.0, 1.0}
    assert len(scores) == len(asked) > 4
