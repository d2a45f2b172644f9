"""Which point Optuna's samplers propose next.

A sampler is asked in a study of its own in memory, made anew from what is measured by then, so its
proposals rest on the latest estimate of every point and not on what was once told; points under
way elsewhere are in it as running. Its seed is the recipe's with the number of trials before.
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

_FEWEST_FOR_MODEL = 4
"""Points before the Gaussian process takes over from chance; the anchors are usually more."""


@dataclass(frozen=True)
class ObservedPoint:
    """A measured point, as a sampler is told of it.

    Attributes:
        place: Values by parameter.
        values: Both roles' scores.
        constraints: At most 0 where met, by name.
        notes: What the sampler itself left on its trial.
    """

    parameters: Mapping[str, Value]
    values: Sequence[float]
    constraints: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    found: dict[str, BaseDistribution] = {
        STEP: IntDistribution(0, len(space.steps) - 1),
        ALPHA: FloatDistribution(0.0, space.max_alpha, step=ALPHA_STEP),
    }
    if len(space.profiles) > 1:
        found[PROFILE] = CategoricalDistribution(space.profiles)
    for name in space.multipliers:
        found[name] = FloatDistribution(
            space.lowest_multiplier, space.highest_multiplier, step=MULTIPLIER_STEP
        )
    return found


def propose(
    space: Space,
    section: SearchSection,
    directions: Sequence[Direction],
    history: Sequence[ObservedPoint],
    running: Sequence[Mapping[str, Value]],
    num_before: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sampler's next place, and what it notes on its trial.

    Args:
        space: What it draws from.
        section: Names the sampler, and the seed.
        directions: Of the roles.
        history: What is measured, in the order of measuring.
        running: Places under way elsewhere.
        num_before: Proposals before this one.
    """
    where = distributions(space)
    sampler = make_sampler(section, num_before)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    for past in history:
        study.add_trial(
            create_trial(
                params=dict(past.parameters),
                distributions=where,
                values=list(past.values),
                constraints=dict(past.constraints) or None,
                system_attrs=dict(past.notes),
            )
        )
    for parameters in running:
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=dict(parameters), distributions=where)
        )
    # A low-discrepancy sequence knows its place only by what it was asked before.
    asks = num_before + 1 if section.sampler == "qmc" else 1
    number = [study.ask(where) for _ in range(asks)][-1].number
    trial = study.get_trials(deepcopy=False)[number]
    return dict(trial.params), dict(trial.system_attrs)


def make_sampler(section: SearchSection, num_before: int) -> BaseSampler:
    """The recipe's sampler for the trial after `num_before` others.

    A scrambled low-discrepancy sequence needs one seed throughout; the others get one a trial.
    """
    seed = int(hashlib.sha256(f"{section.seed}/{num_before}".encode()).hexdigest()[:7], 16)
    match section.sampler:
        case "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=_FEWEST_FOR_MODEL, warn_independent_sampling=False
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
