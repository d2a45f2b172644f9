"""Check that an engine answers as the placed model does, after its weights have changed.

The likelihoods of fixed tokens are compared at the base first; the difference there is rounding of
two implementations. At other points they may differ by a few times as much. Weights that an engine
fails to change show as their share of the change in likelihoods; a share below rounding is not
seen, and is as small in every score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from backtrack.errors import EngineError
from backtrack.evaluate.vllm.model import scoring
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.engine import Engine, PlacedModel
    from backtrack.evaluate.vllm.model import VllmModel

NUM_TEXTS, NUM_TOKENS = 4, 24
MOST_AT_BASE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.15}
"""Root mean square difference of log-likelihoods, in nats, that rounding of the dtype explains."""
LEAST_ALLOWED = 1e-3
"""Difference always allowed at other points, in nats."""
MOST_OF_BASE = 3.0
"""Difference allowed at other points, as a multiple of that at the base."""


def require_same_answers(
    engine: Engine, model: VllmModel, placed: PlacedModel, points: Sequence[Point], dtype: str
) -> None:
    """Refuse an engine whose likelihoods are not those of the placed model.

    Args:
        engine: The engine, at the base.
        model: The model of the engine.
        placed: The model to compare with.
        points: Points in the order of comparison, the base first. Adapters go in one batch.
        dtype: The dtype the engine computes in.

    Raises:
        EngineError: Names the point and the difference.
    """
    texts = _texts(placed.model.get_input_embeddings().weight.shape[0], model.context_tokens)
    engine.expect(points)
    allowed = MOST_AT_BASE[dtype]
    for visit, point in enumerate(points):
        engine.place(point)
        found = [a.logprobs for a in model.ask(texts, [scoring()] * len(texts))]
        placed.place(point)
        difference = _distance(found, _logprobs(placed.model, texts))
        if not difference <= allowed:
            raise EngineError(_refusal(engine.form, point, difference, allowed))
        if visit == 0:
            allowed = max(LEAST_ALLOWED, MOST_OF_BASE * difference)
    engine.place(Point.base())
    engine.expect([])


def _texts(vocabulary: int, context_tokens: int | None) -> list[list[int]]:
    """Token ids drawn with a fixed seed, [NUM_TEXTS, length]."""
    import torch

    length = NUM_TOKENS if context_tokens is None else min(NUM_TOKENS, context_tokens - 1)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_TEXTS, length)
    drawn: list[list[int]] = torch.randint(vocabulary, shape, generator=generator).tolist()
    return drawn


def _logprobs(model: Any, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-likelihood of each token after the first, in nats."""
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


def _refusal(form: str, point: Point, difference: float, allowed: float) -> str:
    where = "the base" if point.is_base else f"{point}"
    way_out = (
        "Use `placement: {form: merged}`, which gives vLLM whole weights"
        if form == "attached" and not point.is_base
        else "Give `engine` another `dtype` or other arguments under `llm`"
    )
    return (
        f"the vLLM engine does not answer as the placed model at {where}: log-likelihoods of "
        f"probe tokens are {difference:.3g} nats apart (root mean square), and {allowed:.3g} is "
        "what rounding explains. Nothing was measured. "
        f"{way_out}, or measure with `engine: transformers`."
    )
