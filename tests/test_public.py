"""The library's docstrings: every public name says what goes in, comes out and goes wrong."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

import backtrack
from backtrack import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INHERITED = {"on_train_begin", "on_step_end", "on_evaluate", "on_epoch_end", "on_train_end"}
"""Events of a Trainer: their arguments are transformers' own."""


def section(documentation: str, name: str) -> dict[str, str]:
    """Entries of a section such as `Args`, by name."""
    found = re.search(rf"^{name}:\n((?:    .*\n?|\n)*)", documentation + "\n", re.MULTILINE)
    entries = re.findall(r"^    \**(\w+): (.*)$", found.group(1), re.MULTILINE) if found else []
    return dict(entries)


def parameters(function: Callable[..., Any]) -> list[str]:
    found = inspect.signature(function).parameters
    return [name for name in found if name not in {"self", "cls"}]


def raised(function: Callable[..., Any]) -> set[str]:
    """Our errors that a function's own lines raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    names = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    return {name for name in names if hasattr(errors, name)}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, and public methods of public classes that take something."""
    for name in backtrack.__all__:
        value = getattr(backtrack, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        for key, member in vars(value).items():
            function = member.fget if isinstance(member, property) else getattr(value, key)
            if key.startswith("_") or not inspect.isroutine(function):
                continue
            yield f"{name}.{key}", function


FUNCTIONS = dict(functions())
CLASSES = [name for name in backtrack.__all__ if inspect.isclass(getattr(backtrack, name))]


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_every_public_function_has_a_sentence_and_names_what_it_raises(name: str) -> None:
    function = FUNCTIONS[name]
    said = inspect.getdoc(function) or ""
    if name.partition(".")[2] not in {"is_base", "trajectory"}:  # their names say it all
        assert said.partition("\n")[0].endswith((".", ":")), name
    assert raised(function) <= set(section(said, "Raises")), name
    assert all(
        hasattr(errors, error) or hasattr(builtins, error) for error in section(said, "Raises")
    )


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "." not in name])
def test_the_front_doors_document_arguments_returns_and_errors(name: str) -> None:
    function = FUNCTIONS[name]
    said = inspect.getdoc(function) or ""
    assert list(section(said, "Args")) == parameters(function)
    assert "\nReturns:\n" in said
    assert section(said, "Raises")


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_method_that_documents_an_argument_documents_all_of_them(name: str) -> None:
    function = FUNCTIONS[name]
    documented = section(inspect.getdoc(function) or "", "Args")
    is_ours = name.partition(".")[2] not in INHERITED
    if documented or (is_ours and len(parameters(function)) > 1):
        assert list(documented) == parameters(function)


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_documents_its_attributes_and_how_it_is_made(name: str) -> None:
    value = getattr(backtrack, name)
    said = inspect.getdoc(value) or ""
    made = section(inspect.getdoc(value.__init__) or "", "Args")
    known = set(made) | set(section(said, "Attributes"))
    fields = value.model_fields if issubclass(value, BaseModel) else parameters(value)
    assert set(fields) <= known, f"{name}: {set(fields) - known} not documented"


def test_every_error_says_what_it_is_for() -> None:
    found = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, Exception)]
    for error in found:
        assert inspect.getdoc(error), error
        assert error.__name__ in (errors.__doc__ or "")
