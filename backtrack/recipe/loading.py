"""Load a recipe: the YAML file, overrides, and paths relative to the file."""

from __future__ import annotations

import logging
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from backtrack.errors import RecipeError
from backtrack.formatting import shortened
from backtrack.recipe.faults import nearest, sentence
from backtrack.recipe.model import PARADIGMS, Recipe
from backtrack.recipe.sections import BARE_KEYS
from backtrack.recipe.yaml_loader import RefusedError, parse_yaml
from backtrack.records.places import of_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_TRAINER_FILES = ("accelerator_config", "chat_template_path", "deepspeed", "fsdp_config")
"""Fields of TRL's configurations that may name a file."""

STANDARD_INPUT = Path("-")
"""The name of a recipe that is read from standard input; its paths are relative to the working
directory."""

logger = logging.getLogger(__name__)


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    checks: Sequence[Callable[[dict[str, Any]], Iterable[str]]] = (),
) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings with values in YAML; they take precedence.
        checks: Functions that yield further mistakes of the raw mapping.

    Raises:
        RecipeError: The recipe has mistakes; all of them are listed.
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
    """Files of the recipes shipped with the package, sorted by name."""
    return tuple(sorted(_folder().glob("*.yaml")))


def packaged_arenas() -> dict[str, Path]:
    """Files of the arena recipes shipped with the package, by name."""
    embedded = sorted((_package() / "assets" / "demo").glob("arena*.yaml"))
    demos = {f"demo-{path.stem}": path for path in embedded}
    return demos | {path.stem: path for path in sorted((_folder() / "arenas").glob("*.yaml"))}


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _folder() -> Path:
    """The folder of recipes: inside the installed package, or beside it in a checkout."""
    candidates = (_package() / "assets" / "recipes", _package().parent / "recipes")
    return next((folder for folder in candidates if folder.is_dir()), _package())


def find_recipe(name: Path) -> Path:
    """The recipe file given by path, by the name of a packaged recipe, or as `-`.

    Raises:
        RecipeError: There is no such recipe.
    """
    if name == STANDARD_INPUT or name.is_file():
        return name
    known = {path.stem: path for path in packaged_recipes()} | packaged_arenas()
    if str(name) in known:
        return known[str(name)]
    hint = nearest(str(name), known)
    raise RecipeError(str(name), [f"there is no such file, and no recipe of that name.{hint}"])


def read_text(path: Path) -> str:
    """The text of a recipe; that of standard input can be read again.

    Raises:
        RecipeError: The file is unreadable or not UTF-8.
    """
    try:
        return _standard_input() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(str(path), [f"it cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), ["it is not UTF-8 text"]) from error


@cache
def _standard_input() -> str:
    return sys.stdin.read()


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping.

    Raises:
        RecipeError: The file is unreadable, not YAML, or not a mapping.
    """
    try:
        raw = parse_yaml(read_text(path))
    except RefusedError as error:
        raise RecipeError(str(path), [str(error)]) from error
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
    """Set `key.inner=value` in a raw recipe; return the mistakes."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        return [f"--set {text!r}: write key.inner=value"]
    *outer, last = key.split(".")
    section: Any = raw
    for part in outer:
        section = _step_into(section, part)
        if section is None:
            return [f"--set {text!r}: {part!r} is not a section"]
    try:
        parsed = parse_yaml(value)
    except RefusedError as error:
        return [f"--set {shortened(text)}: {error}"]
    except yaml.YAMLError:
        return [f"--set {shortened(text)}: {shortened(value)} is not YAML"]
    if isinstance(section, list) and last.isdecimal() and int(last) < len(section):
        section[int(last)] = parsed
    elif isinstance(section, dict):
        section[last] = parsed
    else:
        return [f"--set {text!r}: {key!r} is not a key of the recipe"]
    return []


def _step_into(section: object, part: str) -> object:
    if isinstance(section, dict):
        inner = section.setdefault(part, {})
        if isinstance(inner, str) and part in BARE_KEYS:
            section[part] = inner = {BARE_KEYS[part]: inner}
        return inner
    if isinstance(section, list) and part.isdecimal() and int(part) < len(section):
        return section[int(part)]
    return None


def with_absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy with absolute paths for files that exist relative to the recipe's folder.

    Next comes the working directory. `embedded:NAME` is a file of this package. Other names are
    unchanged: they may be the Hub's.
    """

    def absolute(value: str) -> str:
        value = of_package(value)
        found = next((root for root in (folder, Path()) if (root / value).exists()), None)
        return value if found is None else str((found / value).resolve())

    return with_paths(raw, absolute)


def with_paths(raw: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a raw recipe in which every text that may be a path is changed."""

    def changed(value: object) -> object:
        return change(value) if isinstance(value, str) and value else value

    def mapped(section: object, keys: Sequence[str]) -> object:
        if not isinstance(section, dict):
            return section
        return {k: changed(v) if k in keys else v for k, v in section.items()}

    copy = dict(raw)
    base = raw.get("base")
    copy["base"] = changed(base) if isinstance(base, str) else mapped(base, ["model"])
    copy["data"] = mapped(raw.get("data"), ["train", "eval"])
    for trainer in PARADIGMS:
        copy[trainer] = mapped(raw.get(trainer), _TRAINER_FILES)
    if isinstance(raw.get("objectives"), list):
        copy["objectives"] = [mapped(o, ["path", "include_path"]) for o in raw["objectives"]]
    return {k: v for k, v in copy.items() if k in raw}
