"""Entrants over their seeds, and how geometry goes with forgetting over entrants. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from backtrack.arena_records import Standing
from backtrack.diagnosis_records import Forgetting
from backtrack.records import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.arena_records import Entrant
    from backtrack.records import Axis, Role


def standings(entrants: Sequence[Entrant]) -> tuple[Standing, ...]:
    """A row for each name, in the order of the recipe."""
    names = dict.fromkeys(entrant.name for entrant in entrants)
    return tuple(_standing(name, [e for e in entrants if e.name == name]) for name in names)


def _standing(name: str, entrants: Sequence[Entrant]) -> Standing:
    measured = [entrant for entrant in entrants if entrant.state == "measured"]
    trainable = [e.num_trainable for e in measured if e.num_trainable is not None]
    volumes = [e.hypervolume for e in measured if e.hypervolume is not None]
    against_final = [d.utility for e in measured for d in e.differences if d.to == "final"]
    return Standing(
        name=name,
        seeds=tuple(e.seed for e in measured if e.seed is not None),
        num_failed=sum(entrant.state == "failed" for entrant in entrants),
        num_trainable=trainable[0] if trainable else None,
        final_target=over_seeds([e.report["final"].target for e in measured]),
        final_general=over_seeds([e.report["final"].general for e in measured]),
        chosen_target=over_seeds([e.report["chosen"].target for e in measured]),
        chosen_general=over_seeds([e.report["chosen"].general for e in measured]),
        gain=over_seeds(against_final),
        hypervolume=over_seeds(volumes),
    )


def over_seeds(values: Sequence[Interval]) -> Interval | None:
    """The mean with Student's t interval over seeds; a lone one keeps its interval over items."""
    if len(values) < 2:
        return values[0] if values else None
    from scipy.stats import t as student

    estimates = np.array([value.estimate for value in values])
    half = float(student.ppf(0.975, len(values) - 1)) * float(estimates.std(ddof=1))
    half /= math.sqrt(len(values))
    mean = float(estimates.mean())
    return Interval(estimate=mean, low=mean - half, high=mean + half)


def lost_by(entrants: Sequence[Entrant], axes: Mapping[Role, Axis]) -> tuple[Forgetting, ...]:
    """What the final checkpoint of each diagnosed run has forgotten, on the report items."""
    sign = 1.0 if not axes or axes["general"].direction == "maximize" else -1.0
    return tuple(
        Forgetting(
            name=e.label,
            point=e.final,
            forgetting=sign
            * (e.report["base"].general.estimate - e.report["final"].general.estimate),
            metrics=e.geometry,
        )
        for e in entrants
        if e.state == "measured" and e.geometry and e.final is not None
    )
