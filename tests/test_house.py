"""The house: no circles, small folders, one word one meaning, nothing that only tests call."""

from __future__ import annotations

import ast
import re
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import backtrack

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(backtrack.__file__).parent
MOST_MODULES = 14
OLD_WORDS = frozenset(
    {"standing", "standings", "stand", "stands", "stood", "rider", "riders", "keeper", "keepers"}
    | {"contender", "contenders", "judge", "judged", "judges", "judging", "completing", "looked"}
)
"""Words that the project had in several senses; CONTRIBUTING lists those that replaced them."""


def modules() -> dict[str, Path]:
    """Every module's file, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports, for types alone too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & known.keys()


def test_no_modules_import_each_other_in_a_circle_for_types_either() -> None:
    known = modules()
    graph = {
        name: imported(ast.parse(path.read_text(encoding="utf-8")), known) - {name}
        for name, path in known.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1])) from error


def test_a_folder_holds_about_a_dozen_modules_at_most() -> None:
    folders = {path.parent for path in modules().values()}
    for folder in folders:
        named = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(named) <= MOST_MODULES, folder


def test_no_name_and_no_sentence_has_an_old_word() -> None:
    found = []
    for path in modules().values():
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", token.string)
                words = set(re.split(r"[^a-z]+", spaced.lower()))
                if words & OLD_WORDS:
                    found.append((path.name, token.start[0], words & OLD_WORDS))
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("recipes/**/*.yaml"),
        *ROOT.glob("examples/*.py"),
        *ROOT.glob("examples/*.ipynb"),
    ]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = set(re.split(r"[^a-z]+", line.lower()))
            if words & OLD_WORDS:
                found.append((path.name, number, words & OLD_WORDS))
    assert not found


def test_every_function_is_used_by_the_package_or_public() -> None:
    """A name that occurs once, where it is defined, is called by tests only, or by nobody."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in modules().values())
    readers = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.py"), *ROOT.glob("examples/*.ipynb")]
    shown = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    count: dict[str, int] = {}
    for word in re.findall(r"\w+", text):
        count[word] = count.get(word, 0) + 1
    lonely = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # What overrides another library's method is called by that library.
        own = [c.body for c in tree.body if isinstance(c, ast.ClassDef) and not c.bases]
        for node in [each for body in (tree.body, *own) for each in body]:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.decorator_list:
                continue
            is_protocol = node.name.startswith("_") and node.name.endswith("_")
            if count[node.name] == 1 and not is_protocol and node.name not in shown:
                lonely.append(f"{name}:{node.name}")
    assert not lonely
