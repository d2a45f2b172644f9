"""An arena's recipe: what all entrants share, and what each of them is.

An entrant is the arena's recipe with keys of its own laid over it, section by section; `null`
takes a key away. What decides the measuring (`objectives`, `search`, `select`, and of `base` all
but the type its weights are loaded in) is the arena's alone: all are measured under one rule.
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
"""What an entrant may load the base by: fp32 masters, or packed as QLoRA does."""
_OWN = ("entrants", "seeds", "diagnose", "name", "output")
"""Keys of an arena that are no keys of a recipe, or not its entrants'."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class DiagnoseSection(Section):
    """How the final checkpoint of each entrant is diagnosed."""

    num_prompts: Annotated[int, Field(ge=1)] = 64
    """Prompts a role, at most."""


class EntrantSection(BaseModel):
    """One entrant; every other key is a key of a recipe, laid over the arena's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    """In the arena's table, and of its runs."""
    run: str | None = None
    """A run, a folder of checkpoints to adopt, or another entrant's name: its checkpoints, to be
    measured another way (`placement`). None: it is trained."""


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
            raise ValueError("a seed stands twice")
        return seeds


@dataclass(frozen=True)
class ArenaEntrant:
    """An entrant under one seed.

    Attributes:
        name: The entrant's.
        seed: Of its training.
        label: Names its run.
        recipe: All of it: what is trained and how it is measured.
        run: A run or a folder to adopt; none where it is trained, or is another entrant's.
        like: Label of the entrant whose checkpoints it has, where that is another one's.
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
        name: Names its directory in `output`.
        output: Folder the arena's directory is made in.
        seeds: Each entrant is trained under every one.
        diagnose: How final checkpoints are diagnosed; none where they are not.
        entrants: Every entrant under every seed, in the order they are run: seed by seed, so that
            one seed of all of them is there first.
        shared: What the file says that all entrants share.
    """

    name: str
    output: str
    seeds: tuple[int, ...]
    diagnose: DiagnoseSection | None
    entrants: tuple[ArenaEntrant, ...]
    shared: dict[str, Any]


def is_arena(path: Path) -> bool:
    """Whether a recipe's file is an arena's."""
    return "entrants" in read_mapping(path)


def load_arena(
    path: Path, overrides: Sequence[str] = (), checks: Sequence[Check] = ()
) -> ArenaRecipe:
    """Read an arena's recipe.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings, values in YAML; they win over the file.
        checks: Functions that list further faults of each entrant's raw mapping.

    Raises:
        RecipeError: With every fault found.
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
    made: dict[str, Recipe] = {}
    for section in head.entrants:
        own = section.model_extra or {}
        whole = with_absolute_paths(_laid_over(shared, own) | {"name": section.name}, path.parent)
        found = [f for check in checks for f in check(whole)]
        try:
            made[section.name] = Recipe.model_validate(whole)
        except ValidationError as error:
            found += [sentence(details) for details in error.errors()]
        faults += _of_entrant(section, found, faults)
    if faults:
        raise RecipeError(str(path), faults)
    folder = f"{head.output}/{head.name}/runs"
    entrants = [
        _entrant(s, made[s.name], seed, folder, head) for seed in head.seeds for s in head.entrants
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
    """An entrant's faults with its name; those of what all share are said once."""
    own = section.model_extra or {}
    sentences = []
    for fault in found:
        text = f"entrant {section.name}: {fault}" if _is_about(fault, own) else fault
        if text not in known:
            sentences.append(text)
    return sentences


def _is_about(fault: str, own: dict[str, Any]) -> bool:
    """Whether a fault's key stands in an entrant's own mapping, not in what all share."""
    section, *inner = fault.partition(":")[0].split(".")
    values = own.get(section)
    if not inner or not isinstance(values, dict) or section == "method":
        return section in own
    return inner[0] in values


def _clashes(head: _Head) -> list[str]:
    """Faults of entrants that no recipe of their own would show."""
    names = [section.name for section in head.entrants]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [f"entrants: {name!r} stands twice" for name in twice]
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


def _laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other, key by key; `null` takes a key away."""
    found = dict(under)
    for key, value in over.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict) and isinstance(under.get(key), dict) and key != "method":
            found[key] = _laid_over(under[key], value)
        elif key == "base" and isinstance(value, dict) and key in under:
            found[key] = {"model": under[key], **value}
        else:
            found[key] = value
    return found
