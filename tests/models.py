"""Tiny real models for tests: a random Llama with a character tokenizer, and runs of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from backtrack.recipe import Recipe
from backtrack.records import BaseModelReference, Manifest, Method
from backtrack.records.record import now
from backtrack.run.checkpoint_reader import fingerprint, read_checkpoint
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'\"+-*/=()\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; `<pad>` is 0, `</s>` is 1."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *ALPHABET])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_base(
    folder: Path, *, dtype: str = "float32", tied: bool = True, seed: int = 0, width: int = 32
) -> Path:
    """A random two-layer Llama and its tokenizer, saved as stock transformers saves them."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, attention_bias=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_manifest(base: Path, kind: str) -> Manifest:
    reference = BaseModelReference(model=str(base), fingerprint=fingerprint(base))
    return Manifest(name="tiny", base=reference, method=Method(kind=kind), created=now())


def jitter(
    model: torch.nn.Module, amount: float, seed: int, *, only_trainable: bool = True
) -> None:
    """Move parameters by seeded noise, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not only_trainable:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((amount * noise).to(parameter.dtype))


def make_peft_run(folder: Path, base: Path, config: Any, steps: tuple[int, ...] = (10, 20)) -> Run:
    """A run whose adapters stock PEFT saved, each step further from the base."""
    run = Run.create(folder, make_manifest(base, str(config.peft_type.value).lower()))
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(plain, config)
    for step in steps:
        jitter(model, 0.05, seed=step)
        write_checkpoint(
            run, step, lambda path: model.save_pretrained(str(path)), train_loss=1.0 / step
        )
    return run


def make_full_run(folder: Path, base: Path, steps: tuple[int, ...] = (10, 20)) -> Run:
    """A run of whole models that stock transformers saved."""
    run = Run.create(folder, make_manifest(base, "full"))
    model = AutoModelForCausalLM.from_pretrained(base)
    for step in steps:
        jitter(model, 0.02, seed=step, only_trainable=False)
        write_checkpoint(
            run, step, lambda path: model.save_pretrained(path), train_loss=1.0 / step
        )
    return run


def load_whole(run: Run, step: int) -> Any:
    """A fully trained checkpoint as a stock model, however the run keeps it."""
    return LlamaForCausalLM.from_pretrained(
        None,
        config=LlamaConfig.from_pretrained(run.folder(step)),
        state_dict=read_checkpoint(run, step),
        dtype="auto",
    )


def make_selected_run(folder: Path, config: Any, **given: Any) -> Run:
    """A run with a choice among strengths of two checkpoints; keywords are `make_base`'s."""
    base = make_base(folder / "base", **given)
    run = make_peft_run(folder / "run", base, config)
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(24)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    search = {"trials": 0, "checkpoints": 1, "alphas": [0.25, 0.5, 0.75], "racing": {"shares": []},
              "items": {"selection": 12, "report": 12}, "baselines": []}  # fmt: skip
    recipe = Recipe.model_validate({
        "name": "run", "base": str(base), "search": search,
        "objectives": [
            {"kind": "examples", "role": role, "path": str(folder / f"{name}.jsonl"),
             "score": "nll"} for name, role in (("sums", "target"), ("words", "general"))
        ],
    })  # fmt: skip
    select(run, recipe=recipe)
    return run
