"""Reading a recipe: the YAML file, what overrides it, the files beside it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from backtrack.errors import RecipeError
from backtrack.recipe.faults import nearest, sentence
from backtrack.recipe.model import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

logger = logging.getLogger(__name__)


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    checks: Sequence[Callable[[dict[str, Any]], Iterable[str]]] = (),
) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings, values in YAML; they win over the file.
        checks: Functions that list further faults of the raw mapping.

    Raises:
        RecipeError: With every fault found.
    """
    raw = read_mapping(path)
    faults = [fault for text in overrides for fault in override(raw, text)]
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(with_absolute_paths(raw, path.parent.resolve()))
    except ValidationError as error:
        faults += [sentence(details) for details in error.errors()]
    for check in checks:
        faults += check(raw)
    if faults or recipe is None:
        raise RecipeError(str(path), faults)
    logger.info("loaded recipe %s%s", path, "".join(f", {text}" for text in overrides))
    return recipe


def packaged_recipes() -> tuple[Path, ...]:
    """Recipes that come with the package, by name."""
    return tuple(sorted(_folder().glob("*.yaml")))


def packaged_arenas() -> dict[str, Path]:
    """Recipes of arenas that come with the package, by name."""
    embedded = sorted((_package() / "assets" / "demo").glob("arena*.yaml"))
    found = {f"demo-{path.stem}": path for path in embedded}
    return found | {path.stem: path for path in sorted((_folder() / "arenas").glob("*.yaml"))}


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _folder() -> Path:
    """Where recipes lie: in the package, or beside it in a checkout."""
    places = (_package() / "assets" / "recipes", _package().parent / "recipes")
    return next((folder for folder in places if folder.is_dir()), _package())


def find_recipe(name: Path) -> Path:
    """The file `name` stands for: a file, or a recipe that comes with the package.

    Raises:
        RecipeError: There is none.
    """
    if name.is_file():
        return name
    known = {path.stem: path for path in packaged_recipes()} | packaged_arenas()
    if str(name) in known:
        return known[str(name)]
    hint = nearest(str(name), known)
    raise RecipeError(str(name), [f"there is no such file, and no recipe of that name.{hint}"])


def read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(str(path), [f"it cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), ["it is not UTF-8 text"]) from error
    except yaml.YAMLError as error:
        raise RecipeError(
            str(path), [f"it is not YAML: {' '.join(str(error).split())}"]
        ) from error
    if not isinstance(raw, dict):
        raise RecipeError(
            str(path), ["it must be a mapping of keys; `name` and `base` are needed"]
        )
    return raw


def override(raw: dict[str, Any], text: str) -> Iterable[str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return [f"--set {text!r}: write key.inner=value"]
    *outer, last = key.split(".")
    place: Any = raw
    for part in outer:
        place = _step_into(place, part)
        if place is None:
            return [f"--set {text!r}: {part!r} is not a section"]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return [f"--set {text!r}: {value!r} is not YAML"]
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        return [f"--set {text!r}: {key!r} is not a place in the recipe"]
    return []


def _step_into(place: object, part: str) -> object:
    if isinstance(place, dict):
        return place.setdefault(part, {})
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return place[int(part)]
    return None


def with_absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy in which files that lie beside the recipe are named in full.

    A name that is no file beside the recipe is left alone: it may be a Hub name, or relative to
    the working directory.
    """

    def absolute(value: object) -> object:
        if isinstance(value, str) and value and (folder / value).exists():
            return str((folder / value).resolve())
        return value

    def mapped(section: object, keys: Sequence[str]) -> object:
        if not isinstance(section, dict):
            return section
        return {k: absolute(v) if k in keys else v for k, v in section.items()}

    copy = dict(raw)
    base = raw.get("base")
    copy["base"] = absolute(base) if isinstance(base, str) else mapped(base, ["model"])
    copy["data"] = mapped(raw.get("data"), ["train"])
    if isinstance(raw.get("objectives"), list):
        copy["objectives"] = [mapped(o, ["path", "include_path"]) for o in raw["objectives"]]
    return {k: v for k, v in copy.items() if k in raw}
