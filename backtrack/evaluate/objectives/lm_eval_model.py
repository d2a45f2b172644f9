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
        sequences = []
        for texts, context, continuation in requests:
            if not continuation:  # its likelihood would be 1, above every other choice's
                raise ObjectiveError(f"the continuation of {texts!r} has no token of its own.")
            sequences.append(ScoredSequence([*context, *continuation], len(context)))
        return list(self._language_model.score(sequences))

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Completions of the requests' contexts, requests of equal settings together.

        lm-eval asks for several samples (`repeats` of a task) by giving a request several times.
        """
        eos = self.tokenizer.decode(self.eot_token_id)
        groups: dict[tuple[CompletionLimits, Sampling | None], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[_settings(request.args[1], eos, self._sampling)].append(index)
        texts = [""] * len(requests)
        for (limits, sampling), indices in groups.items():
            repeats: dict[int, list[int]] = defaultdict(list)
            for index in indices:
                repeats[id(requests[index])].append(index)
            most = 1 if sampling is None else max(map(len, repeats.values()))
            if sampling is not None:
                sampling = sampling._replace(samples=sampling.samples * most)
            prompts = [self.tok_encode(requests[same[0]].args[0]) for same in repeats.values()]
            completions = self._complete(prompts, limits, sampling)
            for same, each in zip(repeats.values(), completions, strict=True):
                for number, index in enumerate(same):
                    texts[index] = each[self.number * most + number if sampling else 0]
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
    penalty = float(fields.pop("repetition_penalty", None) or 1)
    num_new, texts = int(fields.pop("max_gen_toks")), tuple(s for s in stop if s)
    limits = CompletionLimits(num_new, texts, penalty)
    is_sampled, temperature = bool(fields.pop("do_sample", False)), fields.pop("temperature", 0.0)
    top_p, top_k = float(fields.pop("top_p", None) or 1), int(fields.pop("top_k", None) or 0)
    others = [key for key, value in fields.items() if value not in _NEUTRAL.get(key, ())]
    if others:
        raise ObjectiveError(
            f"its `generation_kwargs` set {others[0]!r} to {fields[others[0]]!r}, which is not "
            "supported: completions are greedy, or sampled by temperature, top_p and top_k, and "
            "repetition_penalty may be set. "
            "Choose another task, or change it in a task file of your own (`include_path`)."
        )
    if sampling is None and is_sampled:
        sampling = Sampling(1, float(temperature) or 1.0, top_p, top_k, SEED)
    return limits, sampling
