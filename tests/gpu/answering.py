"""What a placed model answers, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from backtrack.evaluate.engine import RunFacts
from backtrack.evaluate.language_model import CompletionLimits, ScoredSequence
from backtrack.evaluate.torch_model import TorchModel
from backtrack.evaluate.transformers_engine import TransformersEngine
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import TransformersSection
from tests.gpu.session import Figure, Session, differences
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

VOCABULARY = 60
"""Tokens that all models here have."""


def prompts(session: Session, number: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    size = (number, session.scale.num_tokens)
    ids: list[list[int]] = torch.randint(3, VOCABULARY, size, generator=generator).tolist()
    return ids


def engine(run: Any, session: Session, batch_size: Any) -> TransformersEngine:
    placement = Placement(run, form="attached", device=str(session.device))
    facts = RunFacts(run.base, run.final, run.path, batch_size)
    return TransformersEngine(placement, TransformersSection(), facts)


def sharing(session: Session) -> Iterator[Figure]:
    """Several strengths decoded together write what each writes alone, in fp32."""
    base = make_base(session.folder / "shared", width=64)
    run = make_peft_run(session.folder / "shared-run", base, configs()["lora"])
    points = [Point(step=20, alpha=alpha) for alpha in (0.25, 0.5, 0.75, 1.0)]
    limits = CompletionLimits(16 if session.is_gpu else 4, ())
    alone, together = engine(run, session, 4), engine(run, session, 4)
    together.expect(points)
    asked = prompts(session, 4)
    wrong = 0
    for point in points:
        alone.place(point)
        together.place(point)
        texts = [each.language_model.complete(asked, limits) for each in (alone, together)]
        wrong += sum(a != b for a, b in zip(*texts, strict=True))
    yield differences("of 16 completions that differ", wrong)


def shared_reading(session: Session) -> Iterator[Figure]:
    """Log-likelihoods with prefixes read once, against sequences read each by itself."""
    for dtype, allowed in (("float32", 1e-3), ("bfloat16", 1.0)):
        base = make_base(session.folder / f"read-{dtype}", dtype=dtype, width=64)
        placement = Placement(
            make_peft_run(session.folder / f"read-{dtype}-run", base, configs()["lora"]),
            device=str(session.device),
        )
        ids = prompts(session, 4)
        sequences = [
            ScoredSequence([*prompt, *tail], len(prompt))
            for prompt in ids
            for tail in prompts(session, 3, seed=1)
        ]
        model = TorchModel(placement.model, placement.tokenizer, 4)
        yield differences(f"models in {dtype} that cannot share", int(not model.reads_trees))
        together = [answer.log_likelihood for answer in model.score(sequences)]
        alone = [model.score([sequence])[0].log_likelihood for sequence in sequences]
        far = max(abs(a - b) for a, b in zip(together, alone, strict=True))
        yield Figure(f"nats apart in {dtype}", far, at_most=allowed, is_exact=True)


def throughput(session: Session) -> Iterator[Figure]:
    """Tokens a second of scoring and of decoding, against transformers at one batch size."""
    rows, new_tokens = (32, 32) if session.is_gpu else (2, 3)
    placement = Placement(session.medium.run("lora"), form="attached", device=str(session.device))
    placement.place(Point(step=1, alpha=0.5))
    ids = prompts(session, rows)
    model, asking = placement.model, TorchModel(placement.model, placement.tokenizer, "auto")
    batch = torch.tensor(ids, device=session.device)

    @torch.inference_mode()
    def bare_scores() -> list[float]:
        logits = model(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        found: list[float] = logits.gather(-1, batch[:, 1:, None]).sum((1, 2)).tolist()
        return found

    @torch.inference_mode()
    def bare_completions() -> Any:
        return model.generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=new_tokens,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    asked = [ScoredSequence(row, 1) for row in ids]
    limits = CompletionLimits(new_tokens, ())
    for what, num_tokens, ours, bare in (
        ("scored", batch.numel(), lambda: asking.score(asked), bare_scores),
        ("decoded", rows * new_tokens, lambda: asking.complete(ids, limits), bare_completions),
    ):
        seconds = session.clock.median(ours)
        yield Figure(f"tokens {what} a second", num_tokens / seconds)
        ratio = session.clock.median(bare) / seconds
        yield Figure(f"tokens {what}, of transformers' own", ratio, at_least=0.8)


CHECKS = (sharing, shared_reading, throughput)
