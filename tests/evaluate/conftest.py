"""A tiny Llama, a byte-level tokenizer, a model whose next token is known, and lm-eval tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backtrack.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 512
NUM_DOCUMENTS = 60
RIGHT = frozenset({1, 4, 7, 50, 59})
"""Documents of the task `toy_next` that the successor model answers rightly."""


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` writes out of the home folder, and its bars out of the output."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def make_tokenizer(*, has_bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges; no padding token, and `<s>` opens a text if `has_bos`."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat, the dog ran to the hat"] * 4, trainer)
    if has_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>" if has_bos else None, eos_token="</s>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def fresh_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return make_tokenizer


def _config(vocabulary: int, width: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Random weights, large enough that its likelihoods are far from uniform."""
    torch.manual_seed(7)
    made: Any = LlamaForCausalLM(_config(len(tokenizer), 32)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.3)
    return made


@pytest.fixture
def successor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model that writes the next letter of the alphabet after a letter, and `a` after all else.

    Layers add nothing; embeddings are one-hot, and the head sends each token to its successor.
    """
    size = len(tokenizer) + len(tokenizer) % 2
    made: Any = LlamaForCausalLM(_config(size, size)).eval()
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS}
    after = dict(zip(LETTERS, LETTERS[1:] + "a", strict=True))
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        made.model.embed_tokens.weight.copy_(torch.eye(size))
        made.lm_head.weight.zero_()
        made.lm_head.weight[ids["a"], :] = 1.0
        for letter in LETTERS:
            made.lm_head.weight[ids["a"], ids[letter]] = 0.0
            made.lm_head.weight[ids[after[letter]], ids[letter]] = 2.0
    return made


def make_recipe(*objectives: dict[str, Any], batch_size: int = 4) -> Recipe:
    """A recipe with these objectives, the first of which is the target."""
    listed = [{"role": "general", **o} for o in objectives]
    listed[0]["role"] = "target"
    if len(listed) == 1:
        listed.append({**listed[0], "role": "general", "name": "other"})
    return Recipe.model_validate(
        {
            "name": "toy",
            "base": "toy",
            "objectives": listed,
            "search": {"batch_size": batch_size},
        }
    )


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    return make_recipe


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes records to a JSONL file and gives its path."""

    def write(records: list[dict[str, Any]], name: str = "items.jsonl") -> str:
        return str(write_jsonl(tmp_path / name, records))

    return write


@dataclass(frozen=True)
class Toys:
    """A folder of lm-eval tasks: `toy_next`, `toy_choice`, `toy_shuffled`; `toys` is a group."""

    folder: str
    documents: list[dict[str, Any]]


_NEXT = """
task: toy_next
tag: toy_tag
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 2
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 2}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
filter_list:
  - {{name: whole, filter: [{{function: take_first}}]}}
  - {{name: first-letter, filter: [{{function: regex, regex_pattern: "([a-z])"}},
      {{function: take_first}}]}}
"""
_PARTS = """
task: toy_parts
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 2}}
process_results: !function parts.process_results
metric_list:
  - {{metric: letters, aggregation: !function parts.mean_over_parts, higher_is_better: true}}
  - {{metric: documents, aggregation: !function parts.mean_over_documents, higher_is_better: true}}
"""
_PARTS_CODE = '''
def process_results(document, results):
    """Whether each letter is right, the second asked for one to three times."""
    answer = document["answer"]
    right = [results[0][i : i + 1] == answer[i] for i in range(2)]
    found = [right[0]] + [right[1]] * (1 + len(document["question"]) % 3)
    return {"letters": found, "documents": found}


def mean_over_parts(items):
    flat = [each for item in items for each in item]
    return sum(flat) / len(flat)


def mean_over_documents(items):
    return sum(sum(item) / len(item) for item in items) / len(items)
'''
_CHOICE = """
task: {name}
tag: toy_tag
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
{process}
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
num_fewshot: 2
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: f1, aggregation: f1, higher_is_better: true}}
"""
_SHUFFLE = '''
import random


def shuffled(dataset):
    """Shuffle each document's choices anew, as some stock tasks do."""
    documents = list(dataset)
    for document in documents:
        answer = document["choices"][document["label"]]
        random.shuffle(document["choices"])
        document["label"] = document["choices"].index(answer)
    return type(dataset).from_list(documents)
'''


def _document(index: int) -> dict[str, Any]:
    """Ends in a letter; the successor model goes on with the two that follow."""
    letter = LETTERS[index % 20]
    after = LETTERS[index % 20 + 1 : index % 20 + 3]
    return {
        "question": f"{'the ' * (index % 5)}cat {index} says {letter}",
        "answer": after if index in RIGHT else "zz",
        "choices": ["q", "x", after[0], "m"],
        "label": 2 if index in RIGHT else 0,
    }


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    folder = tmp_path_factory.mktemp("toys")
    documents = [_document(index) for index in range(NUM_DOCUMENTS)]
    train = [{**_document(index), "question": f"shot {index} b"} for index in range(40)]
    paths = {
        "test": write_jsonl(folder / "test.jsonl", documents),
        "train": write_jsonl(folder / "train.jsonl", train),
    }
    (folder / "shuffle.py").write_text(_SHUFFLE)
    (folder / "parts.py").write_text(_PARTS_CODE)
    process = "process_docs: !function shuffle.shuffled"
    tasks = {
        "next": _NEXT.format(**paths),
        "choice": _CHOICE.format(name="toy_choice", process="", **paths),
        "shuffled": _CHOICE.format(name="toy_shuffled", process=process, **paths),
        "parts": _PARTS.format(**paths),
        "group": "group: toys\ntask: [toy_choice, toy_shuffled]\n",
    }
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(text)
    return Toys(str(folder), documents)
