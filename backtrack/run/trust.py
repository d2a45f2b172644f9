"""Which code a stored run may run: what its user allowed, or stored in it.

A run can ask for code: its manifest for that of a model's repository, its recipe for functions of
objectives and files of tasks. Whoever made the run chose it. A run that this user made is noted in
the user's own state folder, piece by piece; in one from elsewhere the command line asks first.
Nothing is written for runs that ask for no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.run.files import append_line, read_lines, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backtrack.recipe import Recipe
    from backtrack.records import Manifest

logger = logging.getLogger(__name__)


def code_of_base(manifest: Manifest) -> tuple[str, ...]:
    """What the base of a run would run, in words."""
    base = manifest.base
    return (f"the code in the repository of {base.model}",) if base.trust_remote_code else ()


def code_of_recipe(recipe: Recipe | None) -> tuple[str, ...]:
    """What the objectives of a recipe would run, in words."""
    objectives = recipe.objectives if recipe is not None else ()
    return tuple(objective.code for objective in objectives if objective.code)


def require_allowed(manifest: Manifest, code: Iterable[str], where: Path) -> None:
    """Raise an error unless this user allowed each piece of code of a run.

    Raises:
        UsageError: Names the pieces that were not allowed.
    """
    allowed = set(read_lines(_path(), str))
    asked = [piece for piece in code if _digest(manifest, piece) not in allowed]
    if asked:
        raise UsageError(
            f"{where} was not made here and would run {', '.join(asked)}. Read what that does, "
            "then allow it for this run with --trust-code."
        )


def allow(manifest: Manifest, code: Iterable[str]) -> None:
    """Note that this user lets a run use pieces of code."""
    pieces = tuple(code)
    known = set(read_lines(_path(), str)) if pieces else set()
    for digest in (_digest(manifest, piece) for piece in pieces):
        if digest in known:
            continue
        try:
            _path().parent.mkdir(parents=True, exist_ok=True)
            append_line(_path(), json.dumps(digest))
        except OSError as error:
            logger.warning("%s: %s. The next command asks again.", _path(), error.strerror)


def _path() -> Path:
    return state_folder() / "allowed-code.jsonl"


def _digest(manifest: Manifest, piece: str) -> str:
    facts = [manifest.name, manifest.created, piece]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
