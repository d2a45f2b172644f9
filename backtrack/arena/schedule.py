"""Which entrant is prepared next, and what becomes of those that fail or die."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.arena.attempts import MAX_DEATHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.arena.attempts import Attempts
    from backtrack.arena.entrants import LiveEntrant
    from backtrack.arena.preparing import Outcome
    from backtrack.arena.slots import Slots
    from backtrack.recipe.arena import DiagnoseSection

    OnProgress = Callable[[int, int, str], None]

logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """An entrant in a slot.

    Attributes:
        entrant: The entrant.
        deaths: Earlier attempts that ended with the process.
        is_begun: Whether its process has said that it begins; until then it waits for room.
    """

    entrant: LiveEntrant
    deaths: int
    is_begun: bool = False


class Schedule:
    """Entrants on their way through slots."""

    def __init__(
        self,
        entrants: Sequence[LiveEntrant],
        attempts: Attempts,
        on_progress: OnProgress,
        *,
        retry: bool,
    ) -> None:
        """Take all entrants, in the order of starting.

        Args:
            entrants: All of them.
            attempts: Where their attempts are recorded.
            on_progress: Called with the number of entrants done, their number and what is done.
            retry: Whether earlier deaths do not count.
        """
        self._waiting = list(entrants)
        self._running: dict[str, _Running] = {}
        self._failed: set[str] = set()
        self._forgiven = {e.spec.label for e in entrants} if retry else set()
        self._attempts = attempts
        self._on_progress = on_progress
        self._num_entrants = len(entrants)

    def run(self, slots: Slots, diagnosis: DiagnoseSection | None) -> Iterator[LiveEntrant]:
        """Prepare all entrants; give each once it is prepared or has failed."""
        try:
            while self._waiting or self._running:
                entrant = self._next() if len(self._running) < slots.number else None
                if entrant is None:
                    ended = self._take(*slots.wait(self._note))
                else:
                    ended = self._start(entrant, slots, diagnosis)
                if ended is not None:
                    self._report(ended)
                    yield ended
        finally:  # whoever survives an attempt ends it
            for running in self._running.values():
                self._attempts.end(running.entrant)

    @property
    def _num_done(self) -> int:
        return self._num_entrants - len(self._waiting) - len(self._running)

    def _next(self) -> LiveEntrant | None:
        """The first entrant whose checkpoints are its own, or those of one that has ended."""
        unfinished = {*(e.spec.label for e in self._waiting), *self._running}
        ready = (e for e in self._waiting if e.spec.like not in unfinished)
        # Entrants that measure each other's checkpoints all wait: each then says that it has none.
        return next(ready, None if self._running else next(iter(self._waiting), None))

    def _start(
        self, entrant: LiveEntrant, slots: Slots, diagnosis: DiagnoseSection | None
    ) -> LiveEntrant | None:
        """Start an entrant; give it back if it cannot be."""
        self._waiting.remove(entrant)
        label = entrant.spec.label
        deaths = 0 if label in self._forgiven else self._attempts.deaths(entrant)
        entrant.failure = self._obstacle(entrant, deaths)
        if entrant.failure is not None:
            return entrant
        self._running[label] = _Running(entrant, deaths)
        slots.start(entrant.spec, diagnosis)
        return None

    def _obstacle(self, entrant: LiveEntrant, deaths: int) -> str | None:
        if entrant.spec.like in self._failed:
            return f"it measures the checkpoints of {entrant.spec.like}, which failed."
        if deaths >= MAX_DEATHS:
            return (
                f"the process died {MAX_DEATHS} times while it ran, without progress, so it is "
                "skipped; run it again with --retry."
            )
        return None

    def _note(self, label: str, step: str) -> None:
        self._begin(self._running[label])
        self._on_progress(self._num_done, self._num_entrants, f"{label}: {step}")

    def _begin(self, running: _Running) -> None:
        """Record the attempt, unless it is."""
        if not running.is_begun:
            running.is_begun = True
            self._forgiven.discard(running.entrant.spec.label)
            self._attempts.begin(running.entrant, running.deaths)

    def _take(self, label: str, outcome: Outcome) -> LiveEntrant | None:
        """Take an entrant out of its slot; give it if it has ended, else it waits again."""
        running = self._running[label]
        if outcome.death is not None:
            self._begin(running)  # it may have died before it said so
            logger.warning("%s: its process died: %s", label, outcome.death)
            self._waiting.insert(0, running.entrant)
        else:
            running.entrant.take(outcome)
            self._attempts.end(running.entrant)
        del self._running[label]
        return None if outcome.death is not None else running.entrant

    def _report(self, entrant: LiveEntrant) -> None:
        if entrant.failure is not None:
            self._failed.add(entrant.spec.label)
        self._on_progress(self._num_done, self._num_entrants, entrant.spec.label)
