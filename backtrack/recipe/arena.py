"""The recipe of an arena: settings shared by all entrants, and each entrant's own.

An entrant's recipe is the arena's with the entrant's keys merged in, section by section; `null`
removes a key. Whatever decides measurements (`objectives`, `search`, `select`, and `base` except
for its dtype and quantization) is set for the whole arena: all are measured under one rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backtrack.errors import RecipeError
from backtrack.recipe.faults import sentence
from backtrack.recipe.loading import override, read_mapping, with_absolute_paths
from backtrack.recipe.model import Recipe
from backtrack.recipe.sections import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Check = Callable[[dict[str, Any]], Iterable[str]]

ONE_RULE = ("objectives", "search", "select", "output", "seed")
OWN_OF_BASE = {"dtype", "quantization"}
"""Keys of `base` that an entrant may set: fp32 master weights, or quantized as in QLoRA."""
_OWN = ("entrants", "seeds", "diagnose", "name", "output")
"""Keys of an arena that are not keys of its entrants' recipes."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class DiagnoseSection(Section):
    """How the final checkpoint of each entrant is diagnosed."""

    num_prompts: Annotated[int, Field(ge=1)] = 64
    """Largest number of prompts per role."""


class EntrantSection(BaseModel):
    """One entrant; every other key is a recipe key, merged over the arena's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    """Name in the arena's table, and of the entrant's runs."""
    run: str | None = None
    """A run, a folder of checkpoints to adopt, or another entrant's name, to measure its
    checkpoints with another `placement`; None to train the entrant."""


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    output: str = "runs"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    diagnose: DiagnoseSection | None = DiagnoseSection()
    entrants: tuple[EntrantSection, ...] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed occurs twice")
        return seeds


@dataclass(frozen=True)
class ArenaEntrant:
    """An entrant under one seed.

    Attributes:
        name: Name of the entrant.
        seed: Seed of its training.
        label: Name of its run.
        recipe: The complete recipe: training and measurement.
        run: A run or a folder to adopt; None if it is trained or uses another entrant's run.
        like: Label of the entrant whose checkpoints it uses; None if it has its own.
    """

    name: str
    seed: int
    label: str
    recipe: Recipe
    run: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class ArenaRecipe:
    """A whole arena.

    Attributes:
        name: Name of its directory in `output`.
        output: Folder to make the arena's directory in.
        seeds: Seeds that each entrant is trained with.
        diagnose: How final checkpoints are diagnosed; None to skip it.
        entrants: Every entrant with every seed, in running order: seed by seed, so that all
            entrants have one seed before any has two.
        shared: The part of the file that all entrants share.
    """

    name: str
    output: str
    seeds: tuple[int, ...]
    diagnose: DiagnoseSection | None
    entrants: tuple[ArenaEntrant, ...]
    shared: dict[str, Any]


def is_arena(path: Path) -> bool:
    """Whether a recipe file is an arena recipe."""
    return "entrants" in read_mapping(path)


def load_arena(
    path: Path, overrides: Sequence[str] = (), checks: Sequence[Check] = ()
) -> ArenaRecipe:
    """Load an arena recipe.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings with values in YAML; they take precedence.
        checks: Functions that yield further mistakes of each entrant's raw mapping.

    Raises:
        RecipeError: The recipe has mistakes; all of them are listed.
    """
    raw = read_mapping(path)
    faults = [fault for text in overrides for fault in override(raw, text)]
    try:
        head = _Head.model_validate(
            {key: value for key, value in raw.items() if key in _Head.model_fields}
        )
    except ValidationError as error:
        raise RecipeError(str(path), [*faults, *(sentence(d) for d in error.errors())]) from error
    shared = {key: value for key, value in raw.items() if key not in _OWN}
    faults += _clashes(head)
    recipes: dict[str, Recipe] = {}
    for section in head.entrants:
        own = section.model_extra or {}
        whole = with_absolute_paths(_merged(shared, own) | {"name": section.name}, path.parent)
        found = [f for check in checks for f in check(whole)]
        try:
            recipes[section.name] = Recipe.model_validate(whole)
        except ValidationError as error:
            found += [sentence(details) for details in error.errors()]
        faults += _of_entrant(section, found, faults)
    if faults:
        raise RecipeError(str(path), faults)
    folder = f"{head.output}/{head.name}/runs"
    entrants = [
        _entrant(s, recipes[s.name], seed, folder, head)
        for seed in head.seeds
        for s in head.entrants
    ]
    ordered = sorted(entrants, key=lambda e: (head.seeds.index(e.seed), e.like is not None))
    return ArenaRecipe(
        name=head.name,
        output=head.output,
        seeds=head.seeds,
        diagnose=head.diagnose,
        entrants=tuple(ordered),
        shared=shared,
    )


def _of_entrant(section: EntrantSection, found: Sequence[str], known: Sequence[str]) -> list[str]:
    """Mistakes with the entrant's name; mistakes of shared keys are listed once."""
    own = section.model_extra or {}
    sentences = []
    for fault in found:
        text = f"entrant {section.name}: {fault}" if _is_about(fault, own) else fault
        if text not in known:
            sentences.append(text)
    return sentences


def _is_about(fault: str, own: dict[str, Any]) -> bool:
    """Whether a mistake's key is in the entrant's own mapping, not in the shared one."""
    section, *inner = fault.partition(":")[0].split(".")
    values = own.get(section)
    if not inner or not isinstance(values, dict) or section == "method":
        return section in own
    return inner[0] in values


def _clashes(head: _Head) -> list[str]:
    """Mistakes of the entrants together, which no single recipe shows."""
    names = [section.name for section in head.entrants]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [f"entrants: {name!r} occurs twice" for name in twice]
    for section in head.entrants:
        own = section.model_extra or {}
        base = own.get("base", {})
        shared = [key for key in own if key in ONE_RULE]
        if not isinstance(base, dict) or not base.keys() <= OWN_OF_BASE:
            shared.append("base")
        faults += [
            f"entrant {section.name}: {key!r} is the same for all entrants; set it at the top of "
            "the recipe"
            for key in shared
        ]
        if section.run is None and "method" not in own:
            faults.append(
                f"entrant {section.name}: give it a `method` to train, or a `run` to adopt"
            )
    return faults


def _entrant(
    section: EntrantSection, recipe: Recipe, seed: int, folder: str, head: _Head
) -> ArenaEntrant:
    names = {each.name for each in head.entrants} - {section.name}
    several = len(head.seeds) > 1
    suffix = f"-seed{seed}" if several else ""
    label = section.name + suffix
    return ArenaEntrant(
        name=section.name,
        seed=seed,
        label=label,
        recipe=recipe.model_copy(update={"name": label, "output": folder, "seed": seed}),
        run=section.run if section.run not in names else None,
        like=section.run + suffix if section.run in names else None,
    )


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into a copy of `under`, key by key; `null` removes a key."""
    found = dict(under)
    for key, value in over.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict) and isinstance(under.get(key), dict) and key != "method":
            found[key] = _merged(under[key], value)
        elif key == "base" and isinstance(value, dict) and key in under:
            found[key] = {"model": under[key], **value}
        else:
            found[key] = value
    return found
