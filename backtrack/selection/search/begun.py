"""The search that was begun last on a run, so that a choice can finish it: `search.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.recipe import BudgetSection
from backtrack.records.record import now, short_digest
from backtrack.records.search import BegunSearch
from backtrack.run.files import read_record, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import SearchSection
    from backtrack.records.search import Decision
    from backtrack.run.directory import Run
    from backtrack.selection.stats.table import SplitSetting

FILE = "search.json"
_REMEDY = "Delete it and search again: everything measured is in measurements.jsonl."


def search_key(section: SearchSection, setting: SplitSetting) -> str:
    """Hash all that a search's points share, so that they lie in one study and one plan.

    Args:
        section: The search space.
        setting: The setting of the selection items, with the checkpoints as they are now.
    """
    space = section.model_dump(
        include={"alphas", "checkpoints", "max_alpha", "profiles", "multipliers", "sampler"}
    )
    objectives = [(o.name, o.role, o.weight, o.unit, o.range) for o in setting.objectives]
    checkpoints = {str(step): digest for step, digest in setting.checkpoints.items()}
    digests = dict(setting.digests)
    return short_digest(space, objectives, digests, setting.item_ids, checkpoints, section.seed)


def begun_search(run: Run, key: str) -> BegunSearch | None:
    """The search that was begun last, if it has this key.

    Raises:
        RunError: The file is damaged.
    """
    path = run.path / FILE
    begun = read_record(path, BegunSearch, _REMEDY) if path.exists() else None
    return begun if begun is not None and begun.key == key else None


def asked_extent(section: SearchSection) -> str:
    """Hash how far a recipe asks to search."""
    return short_digest(section.trials, section.budget.model_dump())


def begin_search(  # each is a fact of the record
    run: Run, key: str, asked: str, trials: int, budget: BudgetSection, num_recorded: int
) -> BegunSearch:
    """Record that a search begins or goes on; what it has spent so far still counts.

    Args:
        run: The run.
        key: See `search_key`.
        asked: See `asked_extent`.
        trials: Points that the sampler adds.
        budget: Limits of its cost.
        num_recorded: Number of measurements recorded now.
    """
    before = begun_search(run, key)
    begun = BegunSearch(
        key=key,
        asked=asked,
        trials=trials,
        budget=_given(budget.model_dump()),
        num_before=before.num_before if before else num_recorded,
        round=before.round if before else (),
        created=before.created if before else now(),
    )
    _write(run, begun)
    return begun


def begin_round(run: Run, begun: BegunSearch, decisions: Sequence[Decision]) -> None:
    """Record what was decided together, so that a search that stops goes on with the same."""
    _write(run, begun.model_copy(update={"round": tuple(decisions)}))


def finish_search(run: Run, begun: BegunSearch) -> None:
    """Record that a search measured all it was to measure, or spent its budget."""
    _write(run, begun.model_copy(update={"is_finished": True}))


def budget_of(begun: BegunSearch) -> BudgetSection:
    """The limits that a search was begun with."""
    return BudgetSection.model_validate(begun.budget)


def _given(limits: Mapping[str, float | None]) -> dict[str, float]:
    return {kind: limit for kind, limit in limits.items() if limit is not None}


def _write(run: Run, begun: BegunSearch) -> None:
    write_atomically(run.path / FILE, begun.model_dump_json(indent=2) + "\n")
