"""What kind of model an adopted checkpoint is, by its configuration and its files' headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.run.checkpoint_reader import shapes
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_OTHER_CLASSES = re.compile(
    r"For(Sequence|Token|Image|Audio)Classification|ForQuestionAnswering|ForMultipleChoice|"
    r"ForMaskedLM|ForRewardModel|RewardModel"
)
"""Classes in `architectures` that are no causal language models."""
_OTHER_TASKS = {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"}
"""PEFT's tasks that are not language modelling."""


_OTHER_HEADS = {"score", "classifier", "classification_head", "qa_outputs", "reward_head"}
"""Modules that models for these tasks have in the place of a language model's head."""


_NO_ANSWERS = (
    "Only language models that continue a text (causal ones) are measured: a classifier, a reward "
    "model or an encoder has no such answers."
)


def require_language_model(last: Path, settings: Mapping[str, Any] | None) -> None:
    """Refuse a classifier, a reward model or a model with an encoder, by the name of its class."""
    path = last / "config.json"
    if settings is not None:
        task = settings.get("task_type")
        kind = f"an adapter of a model for {task}" if task in _OTHER_TASKS else None
    else:
        config = read_record(path, dict[str, Any]) if path.is_file() else {}
        named = next(iter(config.get("architectures") or ()), "")
        is_other = _OTHER_CLASSES.search(str(named)) or config.get("is_encoder_decoder")
        kind = f"a {named}" if is_other else None
    if kind is not None:
        raise RunError(f"{last} is {kind}. {_NO_ANSWERS}")


def require_language_head(adapter: Path) -> None:
    """Refuse an adapter that trains the head of another task, if its settings name no task."""
    heads = sorted(name for name in shapes(adapter) if _OTHER_HEADS & set(name.split(".")))
    if heads:
        raise RunError(
            f"{adapter} is an adapter of a classifier or a reward model: it trains {heads[0]}. "
            f"{_NO_ANSWERS}"
        )


def trained_architecture(adapter: Path, base: Path) -> str | None:
    """The class that an adapter on a base with several parts was trained in, told by its tensors.

    The text part alone, as `AutoModelForCausalLM` loads it, has no `language_model` in its names.
    """
    config = read_record(base / "config.json", dict[str, Any])
    is_whole = any("language_model" in name.split(".") for name in shapes(adapter))
    return None if is_whole or "text_config" not in config else "AutoModelForCausalLM"
