"""The class of a model: that of the `architectures` of its configuration, with all of its parts.

`AutoModelForCausalLM` loads a model with a vision tower as its text part alone. Here the tower
stays, unless the run was trained on the text part (`architecture` of its base).
"""

from __future__ import annotations

from typing import Any, cast

import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM


def class_and_config(config: Any) -> tuple[Any, Any]:
    """The class to load a language model in, and the part of its configuration for that class."""
    name = next(iter(config.architectures or ()), "")
    named: Any = getattr(transformers, name, None)
    for part in (config, config.get_text_config(decoder=True)):
        if getattr(named, "config_class", None) is type(part) and named.can_generate():
            return named, part
    return AutoModelForCausalLM, config


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def loader_name(model: Any) -> str:
    """Name of the class of transformers that loads a model, or the base of an adapter, whole."""
    plain = unwrapped(model)
    kind, mapping = type(plain), cast("Any", transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    is_causal = type(plain.config) in mapping and mapping[type(plain.config)] is kind
    is_known = getattr(transformers, kind.__name__, None) is kind
    return kind.__name__ if is_known and not is_causal else AutoModelForCausalLM.__name__
