"""The package as a whole: its names, its help, its recipes, its README."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import backtrack
from backtrack import formatting
from backtrack.cli import app
from backtrack.recipe import load_recipe, packaged_recipes
from backtrack.train.trainers.check import library_faults

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "lm_eval",
    "optuna",
    "datasets",
    "altair",
    "scipy",
    "numpy",
)


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_every_public_name_is_there_and_is_no_module() -> None:
    for name in backtrack.__all__:
        assert callable(getattr(backtrack, name)), name
    assert set(backtrack.__all__) <= set(dir(backtrack))


def test_search_and_export_are_functions_in_any_order_of_imports() -> None:
    code = """
import backtrack.selection.search.study, backtrack.exporter, backtrack.run.adopt
from backtrack import adopt, export, search, select
print(all(type(x).__name__ == "function" for x in (adopt, export, search, select)))
"""
    assert run_python(code).strip() == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = backtrack.nonsense


@pytest.mark.parametrize(
    "code",
    [
        "import backtrack",
        "from backtrack.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "import backtrack.records, backtrack.recipe, backtrack.terminal",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str) -> None:
    printed = run_python(f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", packaged_recipes(), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_every_recipe_loads_and_has_no_mistake(path: Path) -> None:
    recipe = load_recipe(path, checks=[library_faults])
    assert recipe.name == path.stem
    assert {objective.role for objective in recipe.objectives} == {"target", "general"}


def commands_in(text: str) -> list[str]:
    """Lines that call us, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"^#?\s*(?:\$ )?(backtrack [a-z].*)$", joined, flags=re.MULTILINE)
    return [re.split(r"\s{3,}| #| > ", line)[0].strip() for line in found]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").rglob("*.md"))]
SOURCES = [*PAGES, *packaged_recipes(), *sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_readme_leads_to_every_guide() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guides = sorted((ROOT / "examples/guides").glob("*.md"))
    assert [guide.name for guide in guides if f"guides/{guide.name}" not in readme] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_command_that_we_print_parses(path: Path) -> None:
    for line in commands_in(path.read_text(encoding="utf-8")):
        parse(line)


def parse(line: str) -> None:
    """Parse a command line as the program would; raise an error if it is wrong."""
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="backtrack")
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        context = typer.Context(command, info_name=name, parent=context)
    command.parse_args(context, words)


def advised_in(path: Path) -> list[str]:
    """The commands in the messages of a module; what is only known at run time is `x`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.Constant | ast.JoinedStr):
            found += re.findall(r"`(backtrack [a-z][^`]*)`", text_of(node))
        elif isinstance(node, ast.Call) and _called(node) == "command":
            found.append(" ".join(["backtrack", *map(text_of, node.args)]))
    return found


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).removeprefix("formatting.")


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "x"


def test_every_command_that_a_message_advises_parses() -> None:
    commands = [line for path in (ROOT / "backtrack").rglob("*.py") for line in advised_in(path)]
    assert len(commands) > 15
    for line in commands:
        parse(line)


def test_a_command_that_is_advised_quotes_the_names_in_it() -> None:
    assert formatting.command("select", Path("my runs/a b")) == "`backtrack select 'my runs/a b'`"


def test_the_readme_and_every_recipe_show_commands() -> None:
    for path in (ROOT / "README.md", *packaged_recipes()):
        assert commands_in(path.read_text(encoding="utf-8")), path


def test_every_command_has_json_quiet_and_verbose() -> None:
    group: Any = typer.main.get_command(app)
    commands = dict(group.commands)
    commands |= {f"recipes {name}": c for name, c in commands.pop("recipes").commands.items()}
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options, name


def test_every_module_imports_where_there_is_no_fcntl() -> None:
    code = """
import importlib, pkgutil, sys
sys.modules["fcntl"] = None
import backtrack
for module in pkgutil.walk_packages(backtrack.__path__, "backtrack."):
    lm_eval = module.name.startswith("backtrack.evaluate.objectives.lm_eval_")
    if module.name != "backtrack.__main__" and not lm_eval:  # dependencies of lm-eval need fcntl
        importlib.import_module(module.name)
print("all of them")
"""
    assert run_python(code).splitlines()[-1] == "all of them"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(backtrack.__file__).parent / "py.typed").is_file()


def test_the_shell_completes_commands_and_names_of_recipes() -> None:
    code = "import sys; sys.argv[0] = 'backtrack'; from backtrack.cli import main; main()"

    def completed(words: str) -> list[str]:
        number = str(len(words.split(" ")) - 1)
        asked = {"_BACKTRACK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, env=os.environ | asked,
        )  # fmt: skip
        return done.stdout.split()

    assert {"search", "select"} <= set(completed("backtrack se"))
    assert completed("backtrack recipes show finished") == ["finished-run"]
