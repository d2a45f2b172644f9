"""Count how often the process died while an entrant ran, so that none can block the others.

An attempt is recorded before it begins and removed when it succeeds or fails. One that is still
recorded at the next start ended with the process: out of memory, a crash in a library, a kill.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backtrack.run.files import read_record, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.arena.entrants import LiveEntrant

MAX_DEATHS = 2


class Attempts:
    """The file `attempts.json` of an arena.

    For each entrant's label it holds `deaths`, the number of attempts that ended with the process,
    the current one included, and `recorded_bytes`, the size of the run's records when the current
    one began.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; a missing one counts as empty.

        Raises:
            RunError: It is damaged.
        """
        remedy = "Delete it: it only counts how often the process died."
        kind = dict[str, dict[str, int]]
        self._path = path
        self._entries = read_record(path, kind, remedy) if path.exists() else {}

    def deaths(self, entrant: LiveEntrant) -> int:
        """How often the process died in an entrant since its run last recorded something."""
        entry = self._entries.get(entrant.spec.label, {})
        if entry.get("recorded_bytes") != entrant.recorded_bytes:
            return 0
        return entry.get("deaths", 0)

    def begin(self, entrant: LiveEntrant, deaths: int) -> None:
        """Record an attempt, after `deaths` attempts that ended with the process."""
        entry = {"deaths": deaths + 1, "recorded_bytes": entrant.recorded_bytes}
        self._entries[entrant.spec.label] = entry
        self._write()

    def end(self, entrant: LiveEntrant) -> None:
        """Remove an attempt that the process survived."""
        self._entries.pop(entrant.spec.label, None)
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._entries) + "\n")
