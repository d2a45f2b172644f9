"""A search worker in its own process, with fake objectives: `RUN [STORAGE [SECONDS]]`."""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from backtrack.evaluate.objectives.objective import Objective
from backtrack.run.directory import Run
from backtrack.selection.search.driver import search
from tests.selection.fakes import FakeEngine, Formula, pair

if TYPE_CHECKING:
    from collections.abc import Sequence


class Slow(Objective):
    """A formula that sleeps, as a process does while a GPU of its own measures."""

    def __init__(self, inner: Formula, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self.info = inner.info
        self.item_ids = inner.item_ids

    def texts(self) -> tuple[str, ...]:
        return ()

    def measure(self, model: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        print(f"measuring {self.info.name}", flush=True)
        time.sleep(self._seconds)
        return self._inner.measure(model, item_ids)


def main(path: str, storage: str = "", seconds: str = "0") -> None:
    warnings.simplefilter("ignore")
    objectives: Any = [Slow(formula, float(seconds)) for formula in pair()]
    engine: Any = FakeEngine()
    search(
        Run.open(path),
        placement=engine,
        objectives=objectives,
        storage=storage or None,
        is_shared=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
