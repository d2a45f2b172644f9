"""Documents of PEFT-Arena's benchmarks, with the columns that the tasks beside this file read.

Where a data set's name is a folder in the working directory, it is read there before the Hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from datasets import Dataset, DatasetDict, load_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping

NUM_OF_SET = 146
"""Documents of each set of BBH: as many as its smallest set has, so that each counts alike."""
SEED = 0
FREE_FORM = frozenset(
    (
        "boolean_expressions", "causal_judgement", "dyck_languages", "formal_fallacies",
        "multistep_arithmetic_two", "navigate", "object_counting", "sports_understanding",
        "web_of_lies", "word_sorting",
    )
)  # fmt: skip
"""Sets of BBH whose answers are words or numbers; the others ask for the letter of an option."""
MEDICINE = Path("PEFTArena-data/m1_eval_data_processed.json")


def math500(**_: Any) -> DatasetDict:
    """The 500 problems of MATH that are measured."""
    return DatasetDict(test=load_dataset("HuggingFaceH4/MATH-500", split="test"))


def aime24(**_: Any) -> DatasetDict:
    """The 30 problems of AIME 2024."""
    documents = load_dataset("Maxwell-Jia/AIME_2024", split="train")
    return DatasetDict(test=documents.rename_columns({"Problem": "problem", "Answer": "answer"}))


def amc23(**_: Any) -> DatasetDict:
    """The 40 problems of AMC 2023: from the folder `amc23`, or the Hub."""
    name = "amc23" if Path("amc23").is_dir() else "math-ai/amc23"
    documents = load_dataset(name, split="test")
    if "problem" not in documents.column_names:
        documents = documents.rename_column("question", "problem")
    return DatasetDict(test=documents)


def medicine(**_: Any) -> DatasetDict:
    """The release's medical questions, from each source as many as the smallest has.

    Raises:
        FileNotFoundError: Says where the file is to be had and where it goes.
    """
    if not MEDICINE.is_file():
        raise FileNotFoundError(
            f"there is no {MEDICINE} in the working directory. It is the file "
            "third_party/med_eval/data/m1_eval_data_processed.json of the repository "
            "github.com/Sphere-AI-Lab/PEFT-Arena: copy it there."
        )
    records = load_dataset("json", data_files=str(MEDICINE), split="train").to_list()
    by_source: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_source.setdefault(record["source"], []).append(record)
    num = min(map(len, by_source.values()))
    return DatasetDict(
        test=Dataset.from_list(
            [record for source in sorted(by_source) for record in _sample(by_source[source], num)]
        )
    )


def _sample(records: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    return Dataset.from_list(records).shuffle(seed=SEED).select(range(num)).to_list()


def ifeval(**_: Any) -> DatasetDict:
    """IFEval with a document for each instruction of each prompt."""
    prompts = load_dataset("google/IFEval", split="train")
    return DatasetDict(
        test=Dataset.from_list(
            [
                {**record, "instruction_id_list": [instruction], "kwargs": [kwargs]}
                for record in prompts
                for instruction, kwargs in zip(
                    record["instruction_id_list"], record["kwargs"], strict=True
                )
            ]
        )
    )


def bbh(subset: str, **_: Any) -> DatasetDict:
    """One set of BBH, each question after the set's three worked examples."""
    documents = load_dataset("SaylorTwift/bbh", subset, split="test")
    documents = documents.shuffle(seed=SEED).select(range(NUM_OF_SET))
    examples = _examples(subset)
    return DatasetDict(
        test=documents.map(
            lambda document: {
                "prompt": f"{examples}\n\n{_question(document)}",
                "asks_for_letter": subset not in FREE_FORM,
            }
        )
    )


def _examples(subset: str) -> str:
    """The instruction and the worked examples, which lm-eval's own task of the set carries."""
    from lm_eval.tasks import __file__ as tasks

    path = Path(tasks).parent / "bbh" / "cot_fewshot" / f"{subset}.yaml"
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    worked = [f"{_question(each)}\n{each['target']}" for each in task["fewshot_config"]["samples"]]
    instruction = f"Follow the given examples and answer the question.\n{task['description']}"
    return "\n\n".join([instruction.strip(), *worked])


def _question(document: Mapping[str, Any]) -> str:
    return f"Q: {document['input']}\nA: Let's think step by step."
