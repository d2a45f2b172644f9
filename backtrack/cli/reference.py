"""Every key of a recipe as Markdown, from the docstrings and types of the sections."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backtrack.recipe.model import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    Schema = dict[str, Any]

_HEAD = """# Every key of a recipe

Made by `backtrack recipes reference` from the sections' docstrings. Paths are relative to the
recipe. A key that is not here is refused, with the nearest name. `backtrack recipes reference
--json` prints the same as a JSON schema, which editors use to complete and check a file.
"""


def schema() -> Schema:
    """The JSON schema of a recipe."""
    return Recipe.model_json_schema()


def reference() -> str:
    """A heading and a table for each section, in the order of the file."""
    whole = schema()
    definitions = whole["$defs"]
    sections = {"Top level": whole, **dict(_sections(whole, definitions, ""))}
    return _HEAD + "".join(_section(title, s, definitions) for title, s in sections.items())


def _sections(parent: Schema, definitions: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
    """All sections below one, with the keys that lead to them."""
    for key, field in parent["properties"].items():
        for name in _references(field):
            section = definitions[name]
            kind = section["properties"].get("kind", {}).get("const")
            title = f"{prefix}{key}" + (f", kind: {kind}" if kind else "")
            yield title, section
            yield from _sections(section, definitions, f"{prefix}{key}.")


def _references(field: Any) -> Iterator[str]:
    """Names of the definitions that a field's type refers to."""
    if isinstance(field, dict):
        if "$ref" in field:
            yield field["$ref"].rpartition("/")[2]
        for key, value in field.items():
            if key not in ("discriminator", "default", "description"):
                yield from _references(value)
    elif isinstance(field, list):
        for value in field:
            yield from _references(value)


def _section(title: str, section: Schema, definitions: Schema) -> str:
    rows = []
    for key, field in section["properties"].items():
        if "const" not in field:
            cells = (f"`{key}`", _type(field, definitions), _default(key, field, section))
            rows.append(f"| {' | '.join(cells)} | {_meaning(field, definitions)} |")
    about = _one_line(section.get("description", "").split("\n\n")[0])
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"\n## {title}\n", f"{about}\n", *table])


def _type(field: Schema, definitions: Schema) -> str:
    """A field's type in the words of YAML."""
    if "$ref" in field:
        kind = definitions[field["$ref"].rpartition("/")[2]]["properties"].get("kind", {})
        return f"`{kind['const']}`" if "const" in kind else "section"
    for several in ("anyOf", "oneOf"):
        if several in field:
            names = [_type(each, definitions) for each in field[several]]
            return " or ".join(dict.fromkeys(name for name in names if name != "null"))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        items = field.get("items")
        return f"list of {_type(items, definitions)}" if items else "list"
    if field.get("type") == "object":
        return "mapping"
    return str(field.get("type", "any")) + _range(field)


def _range(field: Schema) -> str:
    """The bounds of a number, such as ` > 0, <= 4`."""
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(key: str, field: Schema, section: Schema) -> str:
    if key in section.get("required", ()):
        return "required"
    default = field.get("default")
    is_section = isinstance(default, dict)
    return "" if default in (None, [], "") or is_section else f"`{json.dumps(default)}`"


def _meaning(field: Schema, definitions: Schema) -> str:
    text = field.get("description", "")
    if not text and "$ref" in field:
        text = definitions[field["$ref"].rpartition("/")[2]].get("description", "")
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
