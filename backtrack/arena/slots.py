"""Where entrants are prepared: in this process, one after the other, or as tasks of Ray.

A slot is room for one entrant. The arena starts one in each and waits, wherever they are, so that
what it records does not depend on that; `ray_slots` has several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from typing_extensions import override

from backtrack.arena.preparing import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.arena.preparing import Outcome
    from backtrack.recipe.arena import DiagnoseSection, EntrantSpec

    OnStep = Callable[[str, str], None]


class Slots(ABC):
    """One or several slots.

    Attributes:
        number: How many entrants are prepared at the same time.
    """

    number: int

    @abstractmethod
    def start(self, spec: EntrantSpec, diagnosis: DiagnoseSection | None) -> None:
        """Start an entrant in a free slot."""

    @abstractmethod
    def wait(self, on_step: OnStep) -> tuple[str, Outcome]:
        """Wait until an entrant has ended; return its label and what became of it.

        Args:
            on_step: Told the label of an entrant and what is done next; first that it is begun.
        """

    def close(self) -> None:  # noqa: B027  # in one process nothing is held
        """End all that is not done."""


class OneSlot(Slots):
    """This process."""

    number = 1

    def __init__(self) -> None:
        self._started: list[tuple[EntrantSpec, DiagnoseSection | None]] = []

    @override
    def start(self, spec: EntrantSpec, diagnosis: DiagnoseSection | None) -> None:
        self._started.append((spec, diagnosis))

    @override
    def wait(self, on_step: OnStep) -> tuple[str, Outcome]:
        spec, diagnosis = self._started.pop()
        return spec.label, prepare(spec, diagnosis, lambda step: on_step(spec.label, step))
