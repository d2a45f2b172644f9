"""The commands under `recipes`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import recipes_app
from backtrack.cli.options import JsonOption, QuietOption, SetOption, VerboseOption, recipe_names
from backtrack.cli.plan import print_plan
from backtrack.cli.targets import print_json, recipe_path


@recipes_app.command("list")
def list_recipes(
    *, is_json: JsonOption = False, is_quiet: QuietOption = False, _verbosity: VerboseOption = 0
) -> None:
    """List the recipes shipped with the package."""
    from backtrack.recipe import packaged_arenas, packaged_recipes

    alone = [[path.stem, _purpose(path)] for path in packaged_recipes()]
    groups = {
        "To train, or to choose from a finished run": alone,
        "To compare methods, with backtrack arena": [
            [n, _purpose(p)] for n, p in packaged_arenas().items()
        ],
    }
    rows = [row for group in groups.values() for row in group]
    if is_json:
        print_json([{"name": name, "purpose": purpose} for name, purpose in rows])
        return
    if is_quiet:
        for name, _ in rows:
            terminal.print_line(name)
        return
    for heading, group in groups.items():
        terminal.print_line(f"\n{heading}")
        terminal.print_rows(["recipe", "purpose"], group)


@recipes_app.command("show")
def show_recipe(
    name: Annotated[
        str, typer.Argument(help="A recipe's name or file.", autocompletion=recipe_names)
    ],
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,  # noqa: ARG001  # there is nothing to omit
    _verbosity: VerboseOption = 0,
) -> None:
    """Print a recipe."""
    from backtrack.recipe import read_text

    text = read_text(recipe_path(Path(name)))
    if is_json:
        print_json({"name": name, "text": text})
        return
    sys.stdout.write(text)


@recipes_app.command("check")
def check_recipe(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe's name or file.", autocompletion=recipe_names)
    ],
    overrides: SetOption = None,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """List all mistakes of a recipe at once, or what it needs if there are none."""
    from backtrack.recipe import load_recipe
    from backtrack.recipe.arena import is_arena, load_arena
    from backtrack.train.plan.plan import make_plan
    from backtrack.train.trainers.check import library_faults

    path = recipe_path(recipe)
    if is_arena(path):
        arena = load_arena(path, overrides or (), checks=[library_faults])
        recipes = {e.label: e.recipe for e in arena.entrants}
    else:
        recipes = {"": load_recipe(path, overrides or (), checks=[library_faults])}
    plans = {name: make_plan(loaded) for name, loaded in recipes.items()}
    if is_json:
        found = [
            {**loaded.model_dump(mode="json"), "plan": plans[name].as_dict()}
            for name, loaded in recipes.items()
        ]
        print_json(found[0] if "" in recipes else dict(zip(recipes, found, strict=True)))
    if is_json or is_quiet:
        return
    terminal.print_line(f"{path}: no mistakes.")
    for name, plan in plans.items():
        if name:
            terminal.out.print(f"\n{name}")
        print_plan(plan)


@recipes_app.command("reference")
def show_reference(
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,  # noqa: ARG001  # there is nothing to omit
    _verbosity: VerboseOption = 0,
) -> None:
    """Print every key of a recipe, as Markdown or as a JSON schema."""
    from backtrack.cli.reference import reference, schema

    if is_json:
        print_json(schema())
    else:
        sys.stdout.write(reference())


def _purpose(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()
