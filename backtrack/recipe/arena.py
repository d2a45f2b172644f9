"""The recipe of an arena: settings that all entrants share, and each entrant's own.

An entrant's recipe is the arena's, updated section by section with the entrant's own keys; a
`null` removes a key. What decides the scores (`objectives`, `search`, `select`, and all of `base`
but `dtype` and `quantization`) can only be set for the whole arena: all are measured under one
rule. `choices` hold several arenas in one file: see `backtrack.recipe.choices`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backtrack.errors import RecipeError
from backtrack.recipe.choices import read_with_options
from backtrack.recipe.faults import sentence
from backtrack.recipe.loading import read_mapping, with_absolute_paths
from backtrack.recipe.model import Recipe
from backtrack.recipe.search import ClusterSection
from backtrack.recipe.sections import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Check = Callable[[dict[str, Any]], Iterable[str]]

SHARED_KEYS = ("objectives", "search", "select", "output", "seed")
"""Keys that an entrant must not set."""
ENTRANT_BASE_KEYS = {"dtype", "quantization"}
"""Keys of `base` that an entrant may set, to train fp32 weights or over quantized ones (QLoRA)."""
_ARENA_KEYS = ("entrants", "seeds", "diagnose", "name", "output")
"""Keys of an arena that its entrants' recipes do not take over."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class DiagnoseSection(Section):
    """How the final checkpoint of each entrant is diagnosed."""

    num_prompts: Annotated[int, Field(ge=1)] = 64
    """Most prompts of each role."""


class EntrantSection(BaseModel):
    """One entrant; every other key is a recipe's and overrides the arena's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    """Names the entrant in the table, and its runs."""
    run: str | None = None
    """A run, a folder of checkpoints to adopt, or another entrant whose checkpoints are measured
    under another `placement`. None if the entrant is trained."""

    @property
    def own_keys(self) -> dict[str, Any]:
        """Keys that override the arena's."""
        return self.model_extra or {}


class _ArenaSection(BaseModel):
    """Keys that only an arena has; the others are read as a recipe's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    output: str = "runs"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    diagnose: DiagnoseSection | None = DiagnoseSection()
    cluster: ClusterSection = ClusterSection()
    entrants: tuple[EntrantSection, ...] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _require_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice")
        return seeds


@dataclass(frozen=True)
class EntrantSpec:
    """What one entrant under one seed is.

    Attributes:
        name: The entrant's name, the same for all seeds.
        seed: Seed of its training.
        label: Name of its run: the name, with the seed if there are several.
        recipe: Its complete recipe: what is trained and how it is measured.
        run: A run or a folder to adopt; None if it is trained or `like` another entrant.
        like: Label of the entrant whose checkpoints it measures; None if they are its own.
    """

    name: str
    seed: int
    label: str
    recipe: Recipe
    run: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class ArenaRecipe:
    """The recipe of a whole arena.

    Attributes:
        name: Names the arena's directory in `output`.
        output: Folder that the arena's directory is created in.
        seeds: Each entrant is trained once under each seed.
        diagnose: How final checkpoints are diagnosed; None if they are not.
        entrants: Every entrant under every seed, in the order of running: all entrants under the
            first seed come first.
        shared: The keys of the file that all entrants share.
        cluster: Where entrants run, and how many at once; what one takes is said by the `cluster`
            of its own recipe.
    """

    name: str
    output: str
    seeds: tuple[int, ...]
    diagnose: DiagnoseSection | None
    entrants: tuple[EntrantSpec, ...]
    shared: dict[str, Any]
    cluster: ClusterSection


def is_arena(path: Path) -> bool:
    """Whether a recipe file is an arena's."""
    return "entrants" in read_mapping(path)


def load_arena(
    path: Path, overrides: Sequence[str] = (), checks: Sequence[Check] = ()
) -> ArenaRecipe:
    """Read the recipe of an arena.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings, values in YAML; they win over the file.
        checks: Functions that list further faults of an entrant's raw mapping.

    Raises:
        RecipeError: Lists every fault found.
    """
    raw, faults = read_with_options(path, overrides)
    try:
        arena = _ArenaSection.model_validate(
            {key: value for key, value in raw.items() if key in _ArenaSection.model_fields}
        )
    except ValidationError as error:
        raise RecipeError(str(path), [*faults, *(sentence(d) for d in error.errors())]) from error
    shared = {key: value for key, value in raw.items() if key not in _ARENA_KEYS}
    faults += _clashes(arena)
    recipes: dict[str, Recipe] = {}
    for section in arena.entrants:
        whole = _updated(shared, section.own_keys) | {"name": section.name}
        whole = with_absolute_paths(whole, path.parent)
        own_faults = [fault for check in checks for fault in check(whole)]
        try:
            recipes[section.name] = Recipe.model_validate(whole)
        except ValidationError as error:
            own_faults += [sentence(details) for details in error.errors()]
        faults += _attributed(section, own_faults, faults)
    if faults:
        raise RecipeError(str(path), faults)
    return ArenaRecipe(
        name=arena.name,
        output=arena.output,
        seeds=arena.seeds,
        diagnose=arena.diagnose,
        entrants=tuple(_specs(arena, recipes)),
        shared=shared,
        cluster=arena.cluster,
    )


def _attributed(section: EntrantSection, faults: Sequence[str], known: Sequence[str]) -> list[str]:
    """An entrant's faults under its name; those of shared keys are reported once, without one."""
    sentences = []
    for fault in faults:
        is_own = _is_about(fault, section.own_keys)
        text = f"entrant {section.name}: {fault}" if is_own else fault
        if text not in known:
            sentences.append(text)
    return sentences


def _is_about(fault: str, own: dict[str, Any]) -> bool:
    """Whether a fault's key is one of an entrant's own, rather than a shared one."""
    section, *inner = fault.partition(":")[0].split(".")
    values = own.get(section)
    if not inner or not isinstance(values, dict) or section == "method":
        return section in own
    return inner[0] in values


def _clashes(arena: _ArenaSection) -> list[str]:
    """Faults that checking each entrant's recipe alone would not find."""
    names = [section.name for section in arena.entrants]
    repeated = sorted({name for name in names if names.count(name) > 1})
    faults = [f"entrants: the name {name!r} is given twice" for name in repeated]
    for section in arena.entrants:
        own = section.own_keys
        base = own.get("base", {})
        misplaced = [key for key in own if key in SHARED_KEYS]
        if not isinstance(base, dict) or not base.keys() <= ENTRANT_BASE_KEYS:
            misplaced.append("base")
        faults += [
            f"entrant {section.name}: {key!r} is the same for all entrants; set it at the top of "
            "the recipe"
            for key in misplaced
        ]
        if section.run is None and "method" not in own:
            faults.append(
                f"entrant {section.name}: give it a `method` to train, or a `run` to adopt"
            )
    return faults


def _specs(arena: _ArenaSection, recipes: dict[str, Recipe]) -> list[EntrantSpec]:
    """Entrants in the order of running: by seed, those that train first."""
    specs = [
        _spec(section, recipes[section.name], seed, arena)
        for seed in arena.seeds
        for section in arena.entrants
    ]
    return sorted(specs, key=lambda spec: (arena.seeds.index(spec.seed), spec.like is not None))


def _spec(section: EntrantSection, recipe: Recipe, seed: int, arena: _ArenaSection) -> EntrantSpec:
    others = {entrant.name for entrant in arena.entrants} - {section.name}
    suffix = f"-seed{seed}" if len(arena.seeds) > 1 else ""
    label = section.name + suffix
    folder = f"{arena.output}/{arena.name}/runs"
    return EntrantSpec(
        name=section.name,
        seed=seed,
        label=label,
        recipe=recipe.model_copy(update={"name": label, "output": folder, "seed": seed}),
        run=section.run if section.run not in others else None,
        like=section.run + suffix if section.run in others else None,
    )


def _updated(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Shared keys updated with an entrant's own, recursively; `null` removes a key."""
    updated = dict(shared)
    for key, value in own.items():
        if value is None:
            updated.pop(key, None)
        elif isinstance(value, dict) and isinstance(shared.get(key), dict) and key != "method":
            updated[key] = _updated(shared[key], value)
        elif key == "base" and isinstance(value, dict) and key in shared:
            updated[key] = {"model": shared[key], **value}
        else:
            updated[key] = value
    return updated
