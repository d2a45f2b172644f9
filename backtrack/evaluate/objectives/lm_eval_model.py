"""A language model as lm-eval sees it: lm-eval's prompts and metrics, this package's answers.

Prompts, chat templates and the split of a text into context and continuation are lm-eval's own, as
its `hf` model makes them. Two things differ from that model, so that all engines give one score:
a repetition penalty or temperature in the model's own generation config does not count, and
log-likelihoods are taken in fp32 (`softmax_dtype=float32` of lm-eval's `hf` model does the same).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from backtrack.errors import ObjectiveError
from backtrack.evaluate.language_model import CompletionLimits, Sampling, ScoredSequence
from backtrack.evaluate.objectives.lm_eval_settle import SEED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.language_model import LanguageModel

MAX_GEN_TOKS = 256
"""New tokens where neither the task nor the recipe sets a bound; lm-eval's own default."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "repetition_penalty": (1, 1.0),
    "return_dict_in_generate": (False,),
    "use_cache": (True,),
}
"""Arguments of `generate` that change nothing at these values."""


class AskedByLmEval(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's view of a `LanguageModel`.

    Attributes:
        number: The sampled completion that is given back; 0 if completions are greedy.
    """

    # The same prompts as lm-eval's `hf` model makes, to the last argument.
    tok_encode = HFLM.tok_encode
    apply_chat_template = HFLM.apply_chat_template
    loglikelihood_rolling = HFLM.loglikelihood_rolling
    eot_token_id = HFLM.eot_token_id
    prefix_token_id = HFLM.prefix_token_id

    def __init__(self, model: LanguageModel, sampling: Sampling | None) -> None:
        """Take what lm-eval would make of a model.

        Args:
            model: Answers everything.
            sampling: How tasks that generate are sampled; None is as they say themselves.
        """
        super().__init__()
        self.tokenizer = model.tokenizer
        self.number = 0
        self._language_model = model
        self._sampling = sampling
        self._completions: dict[tuple[object, ...], list[list[str]]] = {}
        # What the borrowed functions read.
        self.add_bos_token = None
        self.custom_prefix_token_id = None
        self.chat_template_args: dict[str, Any] = {}
        self.batch_size = sys.maxsize  # rolling windows at once: the model makes the batches
        limit = model.max_scored_tokens
        self.max_length = HFLM._DEFAULT_MAX_LENGTH if limit is None else limit - 1  # noqa: SLF001

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests, which is not used."""
        return str(self.tokenizer.name_or_path)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        sequences = [
            ScoredSequence([*context, *continuation], len(context))
            for _, context, continuation in requests
        ]
        return list(self._language_model.score(sequences))

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Completions of the requests' contexts, requests of equal settings together."""
        eos = self.tokenizer.decode(self.eot_token_id)
        groups: dict[tuple[CompletionLimits, Sampling | None], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[_settings(request.args[1], eos, self._sampling)].append(index)
        texts = [""] * len(requests)
        for (limits, sampling), indices in groups.items():
            prompts = [self.tok_encode(requests[index].args[0]) for index in indices]
            completions = self._complete(prompts, limits, sampling)
            for index, each in zip(indices, completions, strict=True):
                texts[index] = each[self.number if self._sampling else 0]
        return texts

    def _complete(
        self, prompts: list[list[int]], limits: CompletionLimits, sampling: Sampling | None
    ) -> list[list[str]]:
        """All samples at the first call; lm-eval asks again for each number."""
        key = (tuple(map(tuple, prompts)), limits, sampling)
        if key not in self._completions:
            self._completions[key] = self._language_model.complete(prompts, limits, sampling)
        return self._completions[key]


def _settings(
    asked: dict[str, Any], eos: str, sampling: Sampling | None
) -> tuple[CompletionLimits, Sampling | None]:
    """Where a task's completions end, and how they are sampled if they are.

    Raises:
        ObjectiveError: The task generates in a way that no engine here offers.
    """
    fields = dict(normalize_gen_kwargs(asked, MAX_GEN_TOKS))
    stop = handle_stop_sequences(fields.pop("until", None), eos=eos)
    limits = CompletionLimits(int(fields.pop("max_gen_toks")), tuple(s for s in stop if s))
    is_sampled, temperature = bool(fields.pop("do_sample", False)), fields.pop("temperature", 0.0)
    top_p, top_k = float(fields.pop("top_p", None) or 1), int(fields.pop("top_k", None) or 0)
    others = [key for key, value in fields.items() if value not in _NEUTRAL.get(key, ())]
    if others:
        raise ObjectiveError(
            f"its `generation_kwargs` set {others[0]!r} to {fields[others[0]]!r}, which is not "
            "supported: completions are greedy, or sampled by temperature, top_p and top_k. "
            "Choose another task, or change it in a task file of your own (`include_path`)."
        )
    if sampling is None and is_sampled:
        sampling = Sampling(1, float(temperature) or 1.0, top_p, top_k, SEED)
    return limits, sampling
