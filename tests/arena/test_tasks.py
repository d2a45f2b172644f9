"""PEFT-Arena's benchmarks as tasks of lm-eval: documents, prompts, lengths, stops and scores.

Held against the release (e982d19) and its OpenCompass, run on the same texts: the letter of 20,000
made-up medical answers is the same in all; of 1,500 made-up answers to MATH-500 (the solutions,
another problem's answer, the answer in words) 1,496 were graded alike. Two of the others were then
mended; the two left are `x \\in [-2,7]`, which the release does not find equal to itself. The
prompts of 26 sets of BBH are the release's to the last character; in the 27th three line breaks
are spaces there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backtrack.errors import ObjectiveError
from backtrack.evaluate.objectives.lm_eval_library import TaskLibrary
from backtrack.recipe import LmEvalObjective

if TYPE_CHECKING:
    from collections.abc import Mapping

TASKS = Path(__file__).resolve().parents[2] / "recipes" / "arenas" / "tasks"


@pytest.fixture(scope="module")
def library() -> TaskLibrary:
    return TaskLibrary([str(TASKS)])


@pytest.fixture
def load(library: TaskLibrary, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a task of ours, with the shared documents in the working directory."""
    monkeypatch.chdir(shared / "data")

    def tasks(name: str, metric: str = "acc") -> dict[str, Any]:
        section = {"kind": "lm_eval", "role": "target", "task": f"peft_arena_{name}"}
        return library.tasks(LmEvalObjective.model_validate(section | {"metric": metric}))

    return tasks


def only(tasks: Mapping[str, Any]) -> Any:
    (task,) = tasks.values()
    return task


def generation(task: Any) -> tuple[int, float, list[str]]:
    settings = task.config.generation_kwargs
    return settings["max_gen_toks"], settings.get("temperature", 0.0), settings["until"]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "num"), [("math500", 500), ("amc23", 40), ("aime24", 30)])
def test_mathematics_is_sampled_sixteen_times_after_a_plain_question(load, name, num):
    task = only(load(name))
    assert len(task.eval_docs) == num
    assert task.config.repeats == 16
    stops = ["</s>", "<|im_end|>", "<|endoftext|>", "\n\nQuestion:"]
    assert generation(task) == (8192, 0.6, stops)
    document = task.eval_docs[0]
    assert task.doc_to_text(document) == f"Question: {document['problem']}\nAnswer:"
    right = f"so \\boxed{{{document['answer']}}}."
    assert task.process_results(document, [[right] * 4 + ["I cannot say"] * 12]) == {"acc": 0.25}


ANSWERS = [
    ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac12", True),
    ("\\boxed{0.5}", "\\frac{1}{2}", True),
    ("The answer is .25.", "0.25", True),
    ("first 3, then 1,204", "1204", True),
    ("The answer is 27", "27.0", True),
    ("\\boxed{12}", "27.0", False),
    ("nothing", "27.0", False),
]


@pytest.mark.shared
@pytest.mark.parametrize(("said", "gold", "is_right"), ANSWERS)
def test_the_last_box_counts_else_what_the_answer_is_else_the_last_number(
    load, said, gold, is_right
):
    scored = only(load("amc23")).process_results({"answer": gold}, [[said]])
    assert scored == {"acc": float(is_right)}


MEDICAL = {"A": "aspirin", "B": "a broken rib", "C": "Crohn disease"}
LETTERS = [
    ("The answer is A, or rather the answer is \\boxed{B}", "A"),
    ("**B** because (C)", "C"),
    ("A patient with \\boxed{B}.", "B"),
    ("it is aspirin, or a broken rib", "B"),
    ("crohn's", "C"),
    ("(A) ## Final Response\n\nI say B", "B"),
]


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_medicine_is_the_release_s_file_each_source_alike(
    library, shared, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = LmEvalObjective(
        kind="lm_eval", role="target", task="peft_arena_medicine", metric="acc"
    )
    with pytest.raises(ObjectiveError, match=r"Sphere-AI-Lab/PEFT-Arena: copy it there"):
        library.tasks(section)
    records = [
        {"prompt": f"{source} {i}", "options": MEDICAL, "answer_idx": "B", "source": source}
        for source, num in (("one", 3), ("two", 5))
        for i in range(num)
    ]
    (tmp_path / "PEFTArena-data").mkdir()
    (tmp_path / "PEFTArena-data/m1_eval_data_processed.json").write_text(json.dumps(records))
    task = only(library.tasks(section))
    assert [document["source"] for document in task.eval_docs] == ["one"] * 3 + ["two"] * 3
    text = task.doc_to_text(task.eval_docs[0])
    asks = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert text.endswith(asks)
    assert generation(task) == (8192, 0.0, [])
    for said, letter in LETTERS:
        document = task.eval_docs[0] | {"answer_idx": letter}
        assert task.process_results(document, [said]) == {"acc": 1.0}, said


@pytest.mark.shared
def test_a_document_of_ifeval_is_one_instruction(load, monkeypatch, shared):
    monkeypatch.setenv("NLTK_DATA", str(shared / "data" / "nltk_data"))
    task = only(load("ifeval", "inst_level_strict_acc"))
    assert len(task.eval_docs) == 832, "instructions of the 540 prompts at hand"
    assert generation(task) == (1025, 0.0, [])
    no_commas = next(
        d for d in task.eval_docs if d["instruction_id_list"] == ["punctuation:no_comma"]
    )
    for said, score in (("none here", 1.0), ("one, here", 0.0)):
        assert task.process_results(no_commas, [said]) == {"inst_level_strict_acc": score}


@pytest.mark.shared
def test_natural_questions_are_a_turn_that_asks_for_a_beginning(load):
    task = only(load("nq"))
    assert len(task.eval_docs) == 3610
    assert generation(task) == (50, 0.0, [])
    document = {"question": "who", "answer": ["the Beatles", "John Lennon"]}
    assert task.doc_to_text(document).endswith("'The answer is '.\nQ: who?")
    for said, score in (
        ("The answer is beatles.", 1.0),
        ("the answer is a Beatles fan", 1.0),
        ("The answer is Bea. Beatles", 0.0),
        ("\nJohn Lennon\nor not", 1.0),
        ("Paul\nJohn Lennon", 0.0),
    ):
        assert task.process_results(document, [said]) == {"acc": score}, said


@pytest.mark.shared
def test_the_sets_of_bbh_count_alike_and_show_three_worked_examples(load):
    tasks = load("bbh")
    assert len(tasks) == 27
    assert {len(task.eval_docs) for task in tasks.values()} == {146}
    by_name = {name.rpartition(":")[2]: task for name, task in tasks.items()}
    snarks, words = by_name["snarks"], by_name["word_sorting"]
    prompt = snarks.doc_to_text(snarks.eval_docs[0])
    assert prompt.startswith("Follow the given examples and answer the question.\nDetermine which")
    assert prompt.count("\n\nQ: ") == 4
    assert prompt.count("So the answer is (") == 3
    assert prompt.endswith("\nA: Let's think step by step.")
    assert generation(snarks) == (512, 0.0, [])
    letter = {"target": "(B)", "asks_for_letter": True}
    word = {"target": "cat dog", "asks_for_letter": False}
    for task, document, said, score in (
        (snarks, letter, "(A) is odd. So the answer is (B).", 1.0),
        (snarks, letter, "So the answer is (A). answer is (B)", 0.0),
        (words, word, "So the answer is cat dog.\n\nQ: next", 1.0),
        (words, word, "So the answer is **cat dog** here", 1.0),
        (words, word, "the answer is Cat dog", 0.0),
    ):
        assert task.process_results(document, [said]) == {"acc": score}, said
