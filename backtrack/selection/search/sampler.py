"""Ask Optuna's samplers for the next point.

Each proposal comes from a new in-memory study of all points measured so far, so it rests on the
latest score estimate of every point; points being measured by other workers are running trials in
it. The sampler's seed is a hash of the recipe's seed and the number of proposals before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from backtrack.selection.search.space import ALPHA, ALPHA_STEP, MULTIPLIER_STEP, PROFILE, STEP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from backtrack.recipe import SearchSection
    from backtrack.records import Direction
    from backtrack.selection.search.space import Space, Value

_NUM_STARTUP_TRIALS = 4
"""Points the `gp` sampler needs before it fits a model; the anchors are usually more."""


@dataclass(frozen=True)
class ObservedPoint:
    """A measured point as a trial of the sampler's study.

    Attributes:
        parameters: Its parameters in the search space; empty outside the space.
        values: Scores of target and general, in the unit of each role.
        constraints: Violations in points, by name; at most 0 if met.
        notes: System attributes the sampler stored with its proposal.
    """

    parameters: Mapping[str, Value]
    values: Sequence[float]
    constraints: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    result: dict[str, BaseDistribution] = {
        STEP: IntDistribution(0, len(space.steps) - 1),
        ALPHA: FloatDistribution(0.0, space.max_alpha, step=ALPHA_STEP),
    }
    if len(space.profiles) > 1:
        result[PROFILE] = CategoricalDistribution(space.profiles)
    for name in space.multipliers:
        result[name] = FloatDistribution(
            space.lowest_multiplier, space.highest_multiplier, step=MULTIPLIER_STEP
        )
    return result


def propose(
    space: Space,
    section: SearchSection,
    directions: Sequence[Direction],
    history: Sequence[ObservedPoint],
    running: Sequence[Mapping[str, Value]],
    num_before: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sampler's next parameters, and the system attributes it stores with them.

    Args:
        space: The search space.
        section: The recipe's search section: sampler and seed.
        directions: Directions of target and general.
        history: Measured points, in the order of measuring.
        running: Parameters of points being measured by other workers.
        num_before: Number of proposals before this one.
    """
    space_distributions = distributions(space)
    sampler = make_sampler(section, num_before)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    for observed in history:
        study.add_trial(
            create_trial(
                params=dict(observed.parameters),
                distributions=space_distributions,
                values=list(observed.values),
                constraints=dict(observed.constraints) or None,
                system_attrs=dict(observed.notes),
            )
        )
    for parameters in running:
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(parameters),
                distributions=space_distributions,
            )
        )
    # QMCSampler counts its own calls in the study, so earlier proposals are drawn again.
    asks = num_before + 1 if section.sampler == "qmc" else 1
    number = [study.ask(space_distributions) for _ in range(asks)][-1].number
    trial = study.get_trials(deepcopy=False)[number]
    return dict(trial.params), dict(trial.system_attrs)


def make_sampler(section: SearchSection, num_before: int) -> BaseSampler:
    """The recipe's sampler for the proposal after `num_before` others.

    A scrambled quasi-Monte Carlo sequence needs the same seed throughout; the other samplers get
    one seed a proposal.
    """
    seed = int(hashlib.sha256(f"{section.seed}/{num_before}".encode()).hexdigest()[:7], 16)
    match section.sampler:
        case "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=_NUM_STARTUP_TRIALS, warn_independent_sampling=False
            )
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "qmc":
            return optuna.samplers.QMCSampler(
                seed=section.seed, scramble=True, warn_independent_sampling=False
            )
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
