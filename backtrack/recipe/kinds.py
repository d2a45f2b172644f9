"""Sections that are told apart by their `kind`, with room for kinds of other packages.

A base class has one subclass for each kind, whose field `kind` is a literal. A subclass counts as
soon as it is defined: a script that imports the module that defines it may use its kind in a
recipe. An installed package offers kinds to the command line by an entry point, in the group that
its base class names; it is imported only if a recipe uses a kind that nothing here knows.
"""

from __future__ import annotations

import importlib
from functools import lru_cache, reduce
from importlib.metadata import entry_points
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import Field, TypeAdapter
from pydantic_core import core_schema

from backtrack.recipe.sections import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler


class KindSection(Section):
    """A section of one kind among others; abstract.

    Attributes:
        entry_point_group: Group of the entry points that offer further kinds.
        implementation: `module:class` of what does the kind's work, imported when it is built.
    """

    entry_point_group: ClassVar[str]
    implementation: ClassVar[str]

    kind: str
    """Tells the sections of one base class apart; a literal in each subclass."""

    @classmethod
    def load_implementation(cls) -> Any:
        """The class that `implementation` names."""
        module, _, name = cls.implementation.partition(":")
        return getattr(importlib.import_module(module), name)


class OfKind:
    """Annotation of a field that holds a section of any subclass of `base`."""

    def __init__(self, base: type[KindSection]) -> None:
        self._base = base

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found: dict[str, Any] = handler(_union(tuple(_subclasses(self._base))).core_schema)
        return found

    def _validate(self, value: object) -> KindSection:
        if isinstance(value, self._base):
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds_of(self._base):
            for entry_point in entry_points(group=self._base.entry_point_group, name=kind):
                entry_point.load()
        found: KindSection = _union(tuple(_subclasses(self._base))).validate_python(value)
        return found


def kinds_of(base: type[KindSection]) -> tuple[str, ...]:
    """The kinds known now, in the order in which their classes were defined."""
    return tuple(kind for cls in _subclasses(base) for kind in _kind_of(cls))


def _subclasses(base: type[KindSection]) -> Iterator[type[KindSection]]:
    """All classes below the base that have a kind."""
    for cls in base.__subclasses__():
        if _kind_of(cls):
            yield cls
        yield from _subclasses(cls)


def _kind_of(cls: type[KindSection]) -> tuple[str, ...]:
    field = cls.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


@lru_cache(maxsize=16)
def _union(classes: tuple[type[KindSection], ...]) -> TypeAdapter[Any]:
    one_of: Any = Annotated[reduce(or_, classes), Field(discriminator="kind")]
    return TypeAdapter(one_of)
