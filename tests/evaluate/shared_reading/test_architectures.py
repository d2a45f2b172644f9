"""Trees against sequences read one by one, in tiny models of many families, in fp32."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from backtrack.evaluate.language_model import CompletionLimits, Sampling, ScoredSequence
from backtrack.evaluate.shared_reading import support
from backtrack.evaluate.torch_model import TorchModel
from tests.models import make_tokenizer

WIDTH: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
WINDOW = {"sliding_window": 7}
MIXED = ["sliding_attention", "full_attention"] * 2
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-eager": ("llama", {"attn_implementation": "eager"}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {**WINDOW, "use_sliding_window": True, "layer_types": MIXED}),
    "qwen3": ("qwen3", {}),
    "mistral-window": ("mistral", WINDOW),
    "gemma2": ("gemma2", {**WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**WINDOW, "layer_types": MIXED}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt-neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}),
}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {"state_size": 4}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    # Its convolution sees what pads a row, and so does the attention of the next one.
    "recurrent-gemma": ("recurrent_gemma", {
        "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"],
    }),
    "minimax": ("minimax", {
        "block_size": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }),
    # Its rows get into each other's states.
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 256}),
}  # fmt: skip
TOGETHER = {"recurrent-gemma": "equal", "minimax": "equal", "rwkv": "none"}


def make(family: str, changes: dict[str, Any]) -> Any:
    """Random weights, large enough that likelihoods are far from uniform."""
    torch.manual_seed(3)
    options = {**WIDTH, "vocab_size": len(make_tokenizer()), "eos_token_id": 1, **changes}
    implementation = options.pop("attn_implementation", None)
    config = AutoConfig.for_model(family, **options)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def sequences() -> list[ScoredSequence]:
    """A trunk, documents after it, and choices after each document; and two on their own."""
    rng = random.Random(5)
    trunk = rng.choices(range(3, 80), k=21)
    found = []
    for _ in range(4):
        context = trunk + rng.choices(range(3, 80), k=rng.randint(3, 9))
        choices = [rng.choices(range(3, 80), k=3) for _ in range(3)]
        found += [ScoredSequence(context + choice, len(context)) for choice in choices]
    alone = [rng.choices(range(3, 80), k=n) for n in (13, 2)]
    return [*found, ScoredSequence(alone[0], 4), ScoredSequence(alone[1], 1), found[0]]


def by_hand(model: Any, sequence: ScoredSequence) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([sequence.ids[:-1]])).logits[0].double()
    scored = torch.tensor(sequence.ids[sequence.first :])
    found = logits[sequence.first - 1 :].log_softmax(-1).gather(1, scored[:, None])
    return float(found.sum())


def greedy_by_hand(model: Any, ids: list[int], num_tokens: int) -> list[int]:
    written: list[int] = []
    with torch.no_grad():
        for _ in range(num_tokens):
            logits = model(torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == 1:
                break
    return written


@pytest.mark.parametrize("name", [*SHARED, *WHOLE])
def test_likelihoods_and_completions_are_those_of_sequences_read_one_by_one(name: str) -> None:
    model = make(*(SHARED | WHOLE)[name])
    asked = sequences()
    prompts = [sequence.ids for sequence in asked]
    limits = CompletionLimits(12, ())
    expected = [by_hand(model, sequence) for sequence in asked]
    texts = [greedy_by_hand(model, ids, 12) for ids in prompts]
    for batch_size in (2, "auto"):
        ours = TorchModel(model, make_tokenizer(), batch_size)
        assert ours.reads_trees == (name in SHARED)
        assert ours._together == TOGETHER.get(name, "all")
        found = ours.score(asked)
        assert [each.log_likelihood for each in found] == pytest.approx(expected, abs=1e-4)
        written = ours._complete(prompts, limits, [1], None)
        cut = [ids[: ids.index(1) + 1] if 1 in ids else list(ids) for [ids] in written]
        assert cut == texts


def test_choices_in_bfloat16_differ_from_whole_reading_at_near_ties_only() -> None:
    model = make(*SHARED["llama"]).bfloat16()
    asked = [each._replace(ids=[n, *each.ids[1:]]) for n in range(3, 23) for each in sequences()]
    asked = [each for n, each in enumerate(asked) if n % 15 < 12]  # documents of three choices
    ours = TorchModel(model, make_tokenizer(), "auto").score(asked)
    found = torch.tensor([each.log_likelihood for each in ours]).view(-1, 3)
    expected = torch.tensor([by_hand(model, each) for each in asked]).view(-1, 3)
    gaps = expected.max(dim=1).values - expected.gather(1, found.argmax(dim=1)[:, None])[:, 0]
    assert gaps.max() < 0.2  # a choice taken instead of another is nearly as likely
    assert (gaps > 0).float().mean() < 0.05


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_answers_repeat_bit_for_bit(name: str) -> None:
    ours = TorchModel(make(*SHARED[name]), make_tokenizer(), "auto")
    first = ours.score(sequences())
    assert ours.score(sequences()) == first
    backwards = ours.score(sequences()[::-1])
    assert backwards == first[::-1]


def test_every_shared_token_is_read_once() -> None:
    ours = TorchModel(make(*SHARED["llama"]), make_tokenizer(), "auto")
    asked = sequences()[:12]
    ours.score(asked)
    prefixes = {tuple(each.ids[: n + 1]) for each in asked for n in range(len(each.ids) - 1)}
    assert ours.num_tokens == len(prefixes)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_a_sample_depends_on_its_prompt_and_seed_alone(batch_size: Any) -> None:
    model = make(*SHARED["llama"])
    prompts = [sequence.ids for sequence in sequences()[:12]]
    limits, sampling = CompletionLimits(9, ()), Sampling(2, temperature=1.0)
    ours = TorchModel(model, make_tokenizer(), batch_size)
    alone = [ours.complete([ids], limits, sampling)[0] for ids in prompts[:3]]
    together = ours.complete(prompts, limits, sampling)
    assert together[:3] == alone
    assert len({text for texts in together for text in texts}) > 12


def test_a_model_that_cannot_share_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    support._said.clear()
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "backtrack"):
            TorchModel(make(*WHOLE["mamba"]), make_tokenizer(), "auto").score(sequences())
    lines = [line for line in caplog.messages if "read whole" in line]
    assert len(lines) == 1
    assert "mamba cannot share" in lines[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_mask_is_found_out_by_trial(dtype: torch.dtype) -> None:
    model = make(*SHARED["llama"]).to(dtype)
    assert TorchModel(model, make_tokenizer(), "auto").reads_trees
    plain = model.model.forward

    def deaf(**asked: Any) -> Any:
        if asked.get("attention_mask") is not None and asked["attention_mask"].dim() == 4:
            asked["attention_mask"] = None
        return plain(**asked)

    model.model.forward = deaf
    assert not TorchModel(model, make_tokenizer(), "auto").reads_trees
