"""Whether an engine answers as the placed model does, after its weights were really changed.

The likelihoods of fixed tokens are compared at the base first: what they differ by there is the
rounding of two implementations. After a move they may differ by a few times as much, no more. A
part of the weights that an engine leaves behind shows as the share of the move that it carries;
what moves likelihoods by less than rounding stays unseen, and is as small in every score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from backtrack.errors import EngineError
from backtrack.evaluate.vllm.model import scoring
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.vllm.engine import VllmEngine

NUM_TEXTS, NUM_TOKENS = 4, 24
MOST_AT_BASE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.15}
"""Root mean square difference of log-likelihoods, in nats, that a type's rounding explains."""
LEAST_ALLOWED = 1e-3
"""After a move, in the same measure; or `MOST_OF_BASE` times the difference at the base."""
MOST_OF_BASE = 3.0


def require_same_answers(engine: VllmEngine, points: Sequence[Point], dtype: str) -> None:
    """Refuse an engine whose likelihoods are not the placed model's.

    Args:
        engine: Just started, at the base.
        points: Where, in this order; the base first. Adapters are asked in one batch.
        dtype: The type the engine computes in.

    Raises:
        EngineError: With the point and the difference.
    """
    texts = _texts(engine)
    engine.expect(points)
    allowed = MOST_AT_BASE[dtype]
    for visit, point in enumerate(points):
        engine.place(point)
        found = [a.logprobs for a in engine.language_model.ask(texts, [scoring()] * len(texts))]
        engine.placed.place(point)
        difference = _distance(found, _logprobs(engine.placed.model, texts))
        if not difference <= allowed:
            raise EngineError(_refusal(engine, point, difference, allowed))
        if visit == 0:
            allowed = max(LEAST_ALLOWED, MOST_OF_BASE * difference)
    engine.place(Point.base())
    engine.expect([])


def _texts(engine: VllmEngine) -> list[list[int]]:
    """Token ids drawn at random, the same at every start."""
    import torch

    rows = engine.placed.model.get_input_embeddings().weight.shape[0]
    length = min(NUM_TOKENS, engine.process.max_model_len - 1)
    generator = torch.Generator().manual_seed(0)
    drawn: list[list[int]] = torch.randint(rows, (NUM_TEXTS, length), generator=generator).tolist()
    return drawn


def _logprobs(model: Any, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of each token after the first, in nats."""
    import torch

    ids = torch.tensor(texts, device=model.device)
    with torch.inference_mode():
        every = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    found: list[list[float]] = every.gather(2, ids[:, 1:, None])[..., 0].tolist()
    return found


def _distance(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Root mean square difference."""
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(a, b, strict=True)]
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(pairs))


def _refusal(engine: VllmEngine, point: Point, difference: float, allowed: float) -> str:
    where = "the base" if point.is_base else f"{point}"
    way_out = (
        "Use `placement: {form: merged}`, which gives vLLM whole weights"
        if engine.form == "attached" and not point.is_base
        else "Give `engine` another `dtype` or other arguments under `llm`"
    )
    return (
        f"the vLLM engine does not answer as the placed model at {where}: log-likelihoods of "
        f"probe tokens are {difference:.3g} nats apart (root mean square), and {allowed:.3g} is "
        "what rounding explains. Nothing was measured. "
        f"{way_out}, or measure with `engine: transformers`."
    )
