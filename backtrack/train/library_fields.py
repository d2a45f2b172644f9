"""Read keys of a recipe as fields of a library's dataclass: TRL's and PEFT's configurations.

Values are read by the type the field is declared with, so `1e-4`, which YAML takes for text, is a
number.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


def typed_fields(
    kind: type, values: Mapping[str, Any], section: str
) -> tuple[dict[str, Any], list[str]]:
    """Values read by the type of the dataclass field they are for, and one sentence a fault."""
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    typed: dict[str, Any] = {}
    faults = []
    for key, value in values.items():
        if key not in known:
            faults.append(f"{section}.{key}: unknown key.{nearest(str(key), known)}")
            continue
        try:
            typed[key] = _reader(hints[key]).validate_python(value)
        except ValidationError as error:
            faults.append(f"{section}.{key}: {_reason(error)}, got {value!r}")
    return typed, faults


def _reason(error: ValidationError) -> str:
    """The most telling of the reasons, one a type the field may have: a list of choices."""
    reasons = sorted(error.errors(), key=lambda reason: reason["type"] != "literal_error")
    message = reasons[0]["msg"]
    return message[0].lower() + message[1:]


def _reader(hint: Any) -> TypeAdapter[Any]:
    if dataclasses.is_dataclass(hint):
        return TypeAdapter(hint)
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
