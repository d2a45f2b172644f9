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
    """Return the method a live model is trained by and its settings, for the manifest."""
    if not isinstance(model, PeftModel):
        return Method(kind="full")
    config = active_config(model)
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    return Method(kind=kind, settings=_changed_settings(config))


def active_config(model: PeftModel) -> PeftConfig:
    """Return the configuration of the adapter that is trained.

    Raises:
        UsageError: Several adapters are active.
    """
    if len(model.active_adapters) != 1:
        names = ", ".join(model.active_adapters)
        raise UsageError(
            f"a trajectory holds one adapter, but several are active: {names}. Activate one."
        )
    return model.peft_config[model.active_adapters[0]]


def initialization_of(config: PeftConfig) -> str:
    """Return `init_lora_weights` as text; empty for adapters without it."""
    return str(getattr(config, "init_lora_weights", ""))


def _changed_settings(config: PeftConfig) -> dict[str, Any]:
    """Return a PEFT configuration's fields that differ from their defaults, as JSON values."""
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
