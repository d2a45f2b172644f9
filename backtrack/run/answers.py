"""How a run's model reads text and ends its answers: the checkpoint's tokenizer and settings.

An answer ends at a token that ends the checkpoint's: by its generation config, by its tokenizer,
or by its chat template, whose closing token chat models are trained to write. Where the base ends
its answers at other tokens, those end them too, since points near the base write them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack.errors import PlacementError
from backtrack.formatting import one_line
from backtrack.run.model_files import GENERATION, base_files, model_files

if TYPE_CHECKING:
    from backtrack.run.directory import Run
    from backtrack.run.model_files import ModelFiles

logger = logging.getLogger(__name__)

_ANSWER = "answer"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]


@dataclass(frozen=True)
class AnswerEnds:
    """The tokens at which an answer of a run's model ends, at every point.

    Attributes:
        own: Ids by the checkpoint's generation config.
        added: Ids that end an answer too: by the tokenizer, the chat template or the base.
        tokenizer: The run's tokenizer.
    """

    own: tuple[int, ...]
    added: tuple[int, ...]
    tokenizer: Any

    def __str__(self) -> str:
        return (
            f"An answer ends at {self._named(self.own)}, and also at {self._named(self.added)}, "
            "which ends one by the tokenizer, the chat template or the base."
        )

    def _named(self, tokens: tuple[int, ...]) -> str:
        names = self.tokenizer.convert_ids_to_tokens(list(tokens))
        return ", ".join(map(str, names)) or "no token"


def answer_ends(run: Run, tokenizer: Any) -> AnswerEnds:
    """The tokens at which an answer of a run's model ends.

    Args:
        run: The run.
        tokenizer: Its tokenizer.
    """
    files = model_files(run)
    own = _listed(_settings(files, run).get("eos_token_id"))
    others = [tokenizer.eos_token_id, _closing_token(tokenizer), *_of_base(run, files, tokenizer)]
    added = [t for t in dict.fromkeys(others) if t is not None and t not in own]
    return AnswerEnds(tuple(own), tuple(added), tokenizer)


def generation_settings(run: Run, tokenizer: Any) -> dict[str, Any]:
    """The content of generation_config.json at every point of a run's path.

    Args:
        run: The run.
        tokenizer: Its tokenizer.

    Returns:
        The checkpoint's settings; `eos_token_id` lists every token that ends an answer.
    """
    settings, ends = _settings(model_files(run), run), answer_ends(run, tokenizer)
    if ends.added:
        logger.warning("%s: %s", run.path, ends)
        settings["eos_token_id"] = [*ends.own, *ends.added]
    return settings


def _settings(files: ModelFiles, run: Run) -> dict[str, Any]:
    """The generation config, or the one that transformers makes of a model's configuration."""
    from transformers import AutoConfig, GenerationConfig

    if settings := files.read(GENERATION):
        return settings
    with files.in_folder() as folder:
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=run.base.trust_remote_code
            )
        except Exception as error:  # transformers raises many unrelated types
            reason = one_line(error).replace(str(folder), run.base.model)
            raise PlacementError(
                f"the configuration of {run.path} does not load: {reason}"
            ) from error
    made: dict[str, Any] = GenerationConfig.from_model_config(config).to_diff_dict()
    return made


def load_tokenizer(run: Run) -> Any:
    """Load a run's tokenizer; one without a padding token pads with its EOS.

    Raises:
        PlacementError: Neither the checkpoint nor the base has a tokenizer that loads.
    """
    tokenizer = _load(model_files(run), run)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(files: ModelFiles, run: Run) -> Any:
    from transformers import AutoTokenizer

    with files.in_folder() as folder:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=run.base.trust_remote_code
            )
        except Exception as error:  # transformers raises many unrelated types
            where = files.paths.get("tokenizer_config.json")
            name = run.base.model if where is None else where.parent
            reason = one_line(error).replace(str(folder), str(name))
            raise PlacementError(f"{name} has no tokenizer that loads: {reason}") from error
    tokenizer.name_or_path = run.base.model
    return tokenizer


def _of_base(run: Run, files: ModelFiles, tokenizer: Any) -> list[int]:
    """The ids in the run's tokenizer of the tokens that end an answer of the base."""
    base = base_files(run)
    ids = _listed(_settings(base, run).get("eos_token_id"))
    if base.paths.get("tokenizer_config.json") == files.paths.get("tokenizer_config.json"):
        return ids
    try:
        other = _load(base, run)
    except PlacementError:
        return []  # a base without a tokenizer has no tokens to compare
    vocabulary = tokenizer.get_vocab()
    tokens = [*other.convert_ids_to_tokens(ids), other.eos_token]
    return [vocabulary[token] for token in tokens if token in vocabulary]


def _closing_token(tokenizer: Any) -> int | None:
    """The token that closes an answer in the chat template; None if no one token does."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return None
    try:
        text = tokenizer.apply_chat_template(_TURNS, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        logger.info("the chat template does not render an answer: %s", error)
        return None
    end = text.rpartition(_ANSWER)[2]
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in tokenizer.added_tokens_decoder), None)


def _listed(tokens: int | list[int] | None) -> list[int]:
    if tokens is None:
        return []
    return tokens if isinstance(tokens, list) else [tokens]
