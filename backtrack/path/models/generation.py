"""How a run's model reads text and ends its answers: the checkpoint's tokenizer and settings.

An answer ends at a token that ends the checkpoint's: by its generation config, by its tokenizer,
or by its chat template, whose closing token chat models are trained to write. Where the base ends
its answers at other tokens, those end them too, since points near the base write them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig

from backtrack.errors import PlacementError
from backtrack.path.models.architecture import unwrapped
from backtrack.path.models.loading import first_line
from backtrack.run.model_files import CONFIG, GENERATION, base_files, model_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backtrack.run.directory import Run
    from backtrack.run.model_files import ModelFiles

logger = logging.getLogger(__name__)

_ANSWER = "answer"
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]


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
    with files.in_folder() as folder:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=run.base.trust_remote_code
            )
        except Exception as error:  # transformers raises many unrelated types
            where = files.paths.get("tokenizer_config.json")
            name = run.base.model if where is None else where.parent
            reason = first_line(error).replace(str(folder), str(name))
            raise PlacementError(f"{name} has no tokenizer that loads: {reason}") from error
    tokenizer.name_or_path = run.base.model
    return tokenizer


def generation_settings(run: Run, config: Any, tokenizer: Any) -> dict[str, Any]:
    """The content of generation_config.json at every point of a run's path.

    Args:
        run: The run.
        config: The model's configuration, which says how a model without the file generates.
        tokenizer: The run's tokenizer.

    Returns:
        The checkpoint's settings; `eos_token_id` lists every token that ends an answer.
    """
    files = model_files(run)
    settings = files.read(GENERATION) or GenerationConfig.from_model_config(config).to_diff_dict()
    own = _listed(settings.get("eos_token_id"))
    others = [tokenizer.eos_token_id, _closing_token(tokenizer)]
    others += _of_base(run, files, tokenizer)
    added = [t for t in dict.fromkeys(others) if t is not None and t not in own]
    if added:
        logger.warning(
            "%s: an answer ends at %s, and also at %s, which ends one by the tokenizer, the chat "
            "template or the base.", run.path, _named(own, tokenizer), _named(added, tokenizer),
        )  # fmt: skip
        settings["eos_token_id"] = [*own, *added]
    return settings


def set_generation(model: Any, settings: Mapping[str, Any]) -> None:
    """Have a live model generate by the settings of a run."""
    generation = GenerationConfig.from_dict(dict(settings))
    model.generation_config = unwrapped(model).generation_config = generation


def _of_base(run: Run, files: ModelFiles, tokenizer: Any) -> list[int]:
    """The ids in the run's tokenizer of the tokens that end an answer of the base."""
    base = base_files(run)
    settings = base.read(GENERATION) or base.read(CONFIG)
    ids = _listed(settings.get("eos_token_id"))
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


def _named(tokens: Iterable[int], tokenizer: Any) -> str:
    return ", ".join(map(str, tokenizer.convert_ids_to_tokens(list(tokens)))) or "no token"
