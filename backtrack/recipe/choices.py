"""Choices in the recipe of an arena: named options, of which one each is taken.

    choices:
      domain:
        math: {objectives: [...], data: {...}}
        medicine: {objectives: [...], data: {...}}
    domain: math

The key of a choice's name says which option is taken. It may be a mapping instead, of patterns for
the base's name to options: the first that matches counts, letters of either case alike. An
option's keys are added to the file's, choice by choice: sections are merged key by key, lists are
joined, `null` removes a key, and any other value replaces the file's. `{domain}` in the arena's
`name` is the option taken, and `{base}` the last part of the base's name.

Overrides of a choice and of the base come before the options, all others after them.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from backtrack.recipe.faults import nearest
from backtrack.recipe.loading import override, read_mapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

CHOICES = "choices"
_BASE = ("base", "base.model")


def read_with_options(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Read the recipe of an arena with its choices made.

    Returns:
        The raw mapping without choices, and the faults found.

    Raises:
        RecipeError: The file is not a readable mapping.
    """
    raw = read_mapping(path)
    choices = raw.get(CHOICES) or {}
    if not _are_options(choices):
        return raw, [f"{CHOICES}: write option by name for each choice, and keys for each option"]
    early = [text for text in overrides if text.partition("=")[0] in (*_BASE, *choices)]
    late = [text for text in overrides if text not in early]
    faults = [fault for text in early for fault in override(raw, text)]
    faults += _take_options(raw)
    return raw, faults + [fault for text in late for fault in override(raw, text)]


def _are_options(choices: object) -> bool:
    return isinstance(choices, dict) and all(
        isinstance(options, dict) and all(isinstance(keys, dict) for keys in options.values())
        for options in choices.values()
    )


def _take_options(raw: dict[str, Any]) -> Iterable[str]:
    """Replace the choices by the keys of the options taken; yield the faults."""
    taken = {"base": PurePath(_base_name(raw)).name}
    for choice, options in raw.pop(CHOICES, {}).items():
        option = _option(raw.pop(choice, None), _base_name(raw))
        if option not in options:
            hint = nearest(str(option), options)
            yield f"{choice}: there is no {option!r}.{hint} There are {', '.join(options)}."
            continue
        taken[choice] = option
        _add(raw, options[option])
    if len(taken) > 1 and isinstance(raw.get("name"), str):
        for name, value in taken.items():
            raw["name"] = raw["name"].replace(f"{{{name}}}", value)


def _option(value: object, base: str) -> Any:
    """The option that a key gives outright, or by a pattern for the base's name."""
    if not isinstance(value, dict):
        return value
    matches = (o for pattern, o in value.items() if fnmatch(base.lower(), str(pattern).lower()))
    return next(matches, None)


def _base_name(raw: Mapping[str, Any]) -> str:
    base = raw.get("base")
    return str(base.get("model") if isinstance(base, dict) else base)


def _add(raw: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Add an option's keys to a section, as the module's docstring says."""
    if isinstance(raw.get("base"), str) and isinstance(keys.get("base"), dict):
        raw["base"] = {"model": raw["base"]}
    for key, value in keys.items():
        before = raw.get(key)
        if value is None:
            raw.pop(key, None)
        elif isinstance(before, dict) and isinstance(value, dict):
            _add(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            raw[key] = before + value
        else:
            raw[key] = value
