"""Read keys of a recipe as fields of TRL's and PEFT's configuration dataclasses.

Values are converted to the type the field is declared with, so `1e-4`, which YAML reads as text,
becomes a number.
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
    """Convert values to the types of a dataclass's fields.

    Args:
        kind: The dataclass.
        values: By field name.
        section: Section of the recipe the values are from, for messages.

    Returns:
        The values of known fields that could be converted, and one sentence for each fault.
    """
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
    """Return one of the reasons, which are one for each type of a union; prefer listed choices."""
    reasons = sorted(error.errors(), key=lambda reason: reason["type"] != "literal_error")
    message = reasons[0]["msg"]
    return message[0].lower() + message[1:]


def _reader(hint: Any) -> TypeAdapter[Any]:
    if dataclasses.is_dataclass(hint):
        return TypeAdapter(hint)
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
