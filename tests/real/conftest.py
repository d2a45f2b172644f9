"""A real pretrained model: SmolLM2-135M-Instruct, and its first blocks, beside real documents."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "BACKTRACK_SMOLLM2"
NUM_BLOCKS = 2


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> Path:
    """The whole model, as `../shared/models/smollm2.py` writes it."""
    folder = Path(os.environ.get(FOLDER, ""))
    if not (folder / "config.json").is_file():
        pytest.skip(
            f"needs SmolLM2: {FOLDER}=FOLDER, which {shared / 'models/smollm2.py'} writes "
            "(its head says how)"
        )
    return folder.resolve()


@pytest.fixture(scope="session")
def first_blocks(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first blocks alone, in their own bfloat16, for tests of many methods."""
    folder = tmp_path_factory.mktemp("smollm2") / "first-instruct"
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=NUM_BLOCKS)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def documents(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the benchmarks, and data in the layouts of the release."""
    folder = tmp_path_factory.mktemp("documents")
    for name in (shared / "data").iterdir():
        (folder / name.name).symlink_to(name)
    (folder / "PEFTArena-data").mkdir()
    _write_medicine(shared, folder / "PEFTArena-data/m1_eval_data_processed.json")
    _write_training(shared, folder / "train.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NLTK_DATA", str(shared / "data" / "nltk_data"))
        yield folder


def _records(path: Path, num: int) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:num]]


def _write_medicine(shared: Path, path: Path) -> None:
    options = {"A": "yes", "B": "no", "C": "maybe"}
    letters = {word: letter for letter, word in options.items()}
    questions = [
        {
            "prompt": f"{record['question']}\nA. yes\nB. no\nC. maybe",
            "options": options,
            "answer_idx": letters[record["final_decision"]],
            "source": f"half {i % 2}",
        }
        for i, record in enumerate(_records(shared / "data/pubmedqa/test.jsonl", 16))
    ]
    path.write_text(json.dumps(questions), encoding="utf-8")


def _write_training(shared: Path, path: Path) -> None:
    """Fields of both of the release's files: an SFT pair, and a prompt with its right answer."""
    rows = [
        {
            "extra_info": {"question": r["question"], "answer": r["answer"]},
            "prompt": [{"role": "user", "content": r["question"]}],
            "reward_model": {"ground_truth": "B" if i % 2 else "A"},
        }
        for i, r in enumerate(_records(shared / "data/openai/gsm8k/main/train.jsonl", 24))
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield
    torch.set_num_threads(before)
