"""The method a live model is trained by: its PEFT configuration, as the manifest records it."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from backtrack.errors import UsageError
from backtrack.records import Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig
    from transformers import PreTrainedModel

_NOT_SETTINGS = {"peft_type", "peft_version", "base_model_name_or_path", "inference_mode"}


def method_of(model: PreTrainedModel | PeftModel) -> Method:
    """How a live model is trained."""
    if not isinstance(model, PeftModel):
        return Method(kind="full")
    config = active_config(model)
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    return Method(kind=kind, settings=changed_settings(config))


def active_config(model: PeftModel) -> PeftConfig:
    """The configuration of the one adapter that is trained.

    Raises:
        UsageError: Several adapters are active.
    """
    if len(model.active_adapters) != 1:
        names = ", ".join(model.active_adapters)
        raise UsageError(f"a trajectory is of one adapter, but these are active: {names}.")
    return model.peft_config[model.active_adapters[0]]


def initialization_of(config: PeftConfig) -> str:
    """How a LoRA adapter's weights begin; empty for other adapters."""
    return str(getattr(config, "init_lora_weights", ""))


def changed_settings(config: PeftConfig) -> dict[str, Any]:
    """The fields of a PEFT configuration that are not at their default, fit for JSON."""
    values: Mapping[str, Any] = config.to_dict()
    return {
        field.name: _jsonable(values[field.name])
        for field in dataclasses.fields(config)
        if field.name in values
        and field.name not in _NOT_SETTINGS
        and values[field.name] != _default(field)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _jsonable(value: object) -> Any:
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case set() | frozenset():
            return sorted(_jsonable(member) for member in value)
        case list() | tuple():
            return [_jsonable(member) for member in value]
        case dict():
            return {str(key): _jsonable(member) for key, member in value.items()}
        case _:
            return str(value)
