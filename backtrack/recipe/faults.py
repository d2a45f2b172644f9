"""Describe the mistakes of a recipe, with the nearest known key for an unknown one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from backtrack.formatting import shortened
from backtrack.recipe.engine import EngineSection
from backtrack.recipe.kinds import kinds_of
from backtrack.recipe.model import Recipe
from backtrack.recipe.objectives import ObjectiveSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def sentence(details: ErrorDetails) -> str:
    """One validation error as a sentence with the recipe's keys."""
    kinds = {*_KINDS, *kinds_of(ObjectiveSection), *kinds_of(EngineSection)}
    where = ".".join(str(part) for part in details["loc"] if part not in kinds)
    if details["type"] == "extra_forbidden":
        key = str(details["loc"][-1])
        return f"{where}: unknown key.{nearest(key, _known_keys(details['loc']))}"
    if details["type"] == "missing":
        return f"{where}: this key is needed"
    if details["type"].startswith("union_tag"):
        found = (details.get("ctx") or {}).get("tag")
        expected = str((details.get("ctx") or {}).get("expected_tags", "")).replace("'", "")
        known = [tag.strip() for tag in expected.split(",") if tag.strip()]
        hint = nearest(str(found), known) if found else ""
        return f"{where}.kind: must be one of {', '.join(known) or 'the known kinds'}.{hint}"
    message = details["msg"].removeprefix("Value error, ")
    if not where:
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, got {shortened(details['input'])}"


_KINDS = ("full", "adapter", "numeric", "math_verify", "choice", "format", "python")
"""Of methods and rewards, as pydantic writes them into a fault's location."""


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Known keys of the section at `location`, whose last part is the unknown key."""
    schema = TypeAdapter(Recipe).json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(schema, node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"].get(part, "")}
        else:
            node = node.get("properties", {}).get(part, {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        node = options[0]
    name = str(node.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = schema.get("$defs", {}).get(name, node)
    return found if "anyOf" not in found else _resolve(schema, found)
