"""Where requests are answered: by a measurer in this process, or by actors of a Ray cluster.

`ray_executor` has the second kind. A search asks both alike, so that what it decides does not
depend on where, nor by how many, its requests are answered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import groupby
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.point import Point
    from backtrack.records import CurveName, Form
    from backtrack.selection.measurers.measurer import Measured, Measurer, Request

Value = TypeVar("Value")
Asked = ParamSpec("Asked")


class Executor(ABC):
    """One or several measurers of a run.

    Attributes:
        num_measurers: How many requests are answered at the same time.
    """

    num_measurers: int

    @property
    @abstractmethod
    def is_built(self) -> bool:
        """Whether engine and objectives are there."""

    @property
    @abstractmethod
    def form_and_curve(self) -> tuple[Form, CurveName] | None:
        """Form and curve of the engine; None before one is started."""

    @abstractmethod
    def measured(
        self, requests: Sequence[Request], on_begin: Callable[[Request], None]
    ) -> Iterator[Measured]:
        """Answer requests, each as soon as it is measured.

        Args:
            requests: The requests; those of one point follow one another.
            on_begin: Called with each request that is begun.

        Raises:
            ObjectiveError: An objective cannot be measured; requests under way are given up.
            EngineError: The measurers of a request died again and again.
        """

    @abstractmethod
    def ask(
        self,
        method: Callable[Concatenate[Measurer, Asked], Value],
        *args: Asked.args,
        **kwargs: Asked.kwargs,
    ) -> Value:
        """The result of a method of `Measurer`, called at any of them."""

    def close(self) -> None:  # noqa: B027  # in one process nothing is held
        """End all measurers that run elsewhere."""


class InProcess(Executor):
    """The one measurer of this process."""

    num_measurers = 1

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer

    @property
    @override
    def is_built(self) -> bool:
        return self._measurer.is_built

    @property
    @override
    def form_and_curve(self) -> tuple[Form, CurveName] | None:
        return self._measurer.form_and_curve

    @override
    def measured(
        self, requests: Sequence[Request], on_begin: Callable[[Request], None]
    ) -> Iterator[Measured]:
        groups = [(p, list(group)) for p, group in groupby(requests, lambda r: r.point)]
        for number, (_, group) in enumerate(groups):
            self._measurer.expect(_with_same_items(groups[number:]))
            for request in group:
                on_begin(request)
                yield self._measurer.measure(request)

    @override
    def ask(
        self,
        method: Callable[Concatenate[Measurer, Asked], Value],
        *args: Asked.args,
        **kwargs: Asked.kwargs,
    ) -> Value:
        return method(self._measurer, *args, **kwargs)


def _with_same_items(groups: Sequence[tuple[Point, Sequence[Request]]]) -> list[Point]:
    """The points of which the same is asked as of the first."""
    asked = [[(r.objective, r.item_ids) for r in group] for _, group in groups]
    return [point for (point, _), each in zip(groups, asked, strict=True) if each == asked[0]]
