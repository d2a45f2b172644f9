"""Measure both roles on a few items while training goes on, and stop before too much is lost.

A LOOK scores the recipe's objectives on the same few selection items of each (the report items
stay unseen) where the live model stands; the first is at the base. What is compared is paired,
item by item. Training stops at a look where general ability has SURELY fallen by more than the
bound: where the lower end of a one-sided bootstrap interval of the drop lies above it. The
interval's level is shared among all looks of the training (Bonferroni), so that of a hundred
trainings that lose no more than the bound at any look, five at most are stopped by noise.

Promised: training goes on exactly as it would have without being looked at; each look is on disk,
in the run's `watch.jsonl`, before the next step; a resumed training keeps the looks before it.
Not promised: that a drop is seen on few items. Fifty yes-or-no items see one of about 15 points.
"""

from __future__ import annotations

import math
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from pydantic import Field
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import UsageError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.measure import require_scores
from backtrack.records import ROLES, Interval, Record
from backtrack.run.directory import append_line, read_lines, write_atomically
from backtrack.selection.stats.bootstrap import LEVEL, NUM_RESAMPLES, interval, resample_means
from backtrack.selection.stats.items import nested_order, split_items
from backtrack.selection.stats.utility import FRACTION, of_role, role_shares
from backtrack.train.trainers.trajectory_log import log_beside
from backtrack.train.trajectory.snapshot import is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import Recipe, WatchSection
    from backtrack.records import ObjectiveInfo, Role

    Floats = NDArray[np.float64]

WATCH = "watch.jsonl"
_SAMPLES_IN_THE_TAIL = 10


class Look(Record):
    """Both roles at one step, and what changed since the base.

    Attributes:
        step: Optimizer steps taken.
        target: Score of the role, in percent where its objectives are fractions.
        general: Likewise.
        gain: Of the target since the base, better counted up, with its 95% interval.
        drop: Of general ability since the base, worse counted up, likewise.
        sure_drop: What it has fallen by at least, at the level that decides.
        seconds: The look took.
        scores: Of each objective's items.
        item_ids: Of each objective; at the first look only.
    """

    step: int
    target: float
    general: float
    gain: Interval
    drop: Interval
    sure_drop: float
    seconds: float
    scores: dict[str, tuple[float, ...]]
    item_ids: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Watch(TrainerCallback):
    """Looks every so many steps.

    Attributes:
        reason: Why training was stopped; none while it was not.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainer: Any,
        path: Path,
        on_look: Callable[[Look], None] | None = None,
    ) -> None:
        """Build the objectives and draw their items.

        Args:
            recipe: Has a section `watch`.
            trainer: That trains; its logs get the figures.
            path: The run's directory.
            on_look: Called after each look.

        Raises:
            UsageError: A bound is asked for where general objectives share no unit.
            ObjectiveError: An objective is not as the recipe says.
        """
        assert recipe.watch is not None
        self._section: WatchSection = recipe.watch
        self._trainer = trainer
        self._path = path / WATCH
        self._on_look = on_look
        self._seed = recipe.search.seed
        self._objectives = build_objectives(recipe, trainer.processing_class)
        self._infos = [objective.info for objective in self._objectives]
        self._items = {o.info.name: self._draw(o, recipe) for o in self._objectives}
        self._base: Look | None = None
        self._num_looks = 1
        self.reason: str | None = None
        if self._section.max_general_drop is not None:
            require_one_unit(self._infos)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Look at the base, or go on from the looks before a resume."""
        if any(is_sharded(tensor) for tensor in live["model"].state_dict(keep_vars=True).values()):
            raise UsageError(
                "`watch` generates with the live model, whose weights are sharded. Drop `watch`, "
                "or train without sharding."
            )
        self._num_looks = max(math.ceil(state.max_steps / self._section.every_steps), 1)
        if not state.is_world_process_zero:
            return
        before = [look for look in read_lines(self._path, Look) if look.step <= state.global_step]
        kept = {look.step: look for look in before}
        if kept:
            lines = [look.model_dump_json() for look in kept.values()]
            write_atomically(self._path, "\n".join([*lines, ""]))
        self._base = kept.get(0)
        if self._base is None and state.global_step == 0:
            self._look(state, control, live["model"])

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Look if it is time, and stop if too much is lost."""
        is_due = state.global_step % self._section.every_steps == 0
        if not is_due and state.global_step < state.max_steps:
            return
        if state.is_world_process_zero and self._base is not None:
            self.reason = self._too_much(self._look(state, control, live["model"]))
        if args.world_size > 1:
            shared = [self.reason]
            broadcast_object_list(shared)
            self.reason = shared[0]
        if self.reason is not None:
            control.should_training_stop = control.should_save = True

    def _look(self, state: TrainerState, control: TrainerControl, model: Any) -> Look:
        begin = time.perf_counter()
        with _unseen():
            scores = {
                o.info.name: o.measure(
                    model, self._trainer.processing_class, self._items[o.info.name]
                )
                for o in self._objectives
            }
        for name, found in scores.items():
            require_scores(name, f"step {state.global_step}", self._items[name], found)
        look = self._read(state.global_step, scores, time.perf_counter() - begin)
        append_line(self._path, look.model_dump_json())
        log_beside(self._trainer, control, figures(look))
        if self._on_look is not None:
            self._on_look(look)
        return look

    def _read(self, step: int, scores: dict[str, tuple[float, ...]], seconds: float) -> Look:
        first = scores if self._base is None else self._base.scores
        pairs = {name: np.array([first[name], scores[name]]) for name in scores}
        level = (1 - self._section.level) / self._num_looks
        num = max(NUM_RESAMPLES, math.ceil(_SAMPLES_IN_THE_TAIL / level))
        values = {
            role: self._role(role, {n: p.mean(axis=1) for n, p in pairs.items()}) for role in ROLES
        }
        samples = {
            name: resample_means(
                pair, self._items[name], seed=self._seed, name=name, num_resamples=num
            )
            for name, pair in pairs.items()
        }
        drawn = {role: self._role(role, samples) for role in ROLES}
        gain, gains = _change(values["target"], drawn["target"], since=0, now=1)
        drop, drops = _change(values["general"], drawn["general"], since=1, now=0)
        look = Look(
            step=step,
            target=self._natural("target", values["target"][1]),
            general=self._natural("general", values["general"][1]),
            gain=interval(gain, gains, LEVEL),
            drop=interval(drop, drops, LEVEL),
            sure_drop=float(np.quantile(drops, level)),
            seconds=seconds,
            scores=scores,
            item_ids=self._items if self._base is None else {},
        )
        self._base = self._base or look
        return look

    def _role(self, role: Role, means: dict[str, Floats]) -> Floats:
        """A role's score, better counted up: percent for fractions, else the objectives' unit."""
        shares = role_shares(self._infos, role)
        parts = [
            shares[info.name] * means[info.name]
            * (100 if info.unit == FRACTION else 1)
            * (1 if info.direction == "maximize" else -1)
            for info in of_role(self._infos, role)
        ]  # fmt: skip
        total: Floats = np.sum(parts, axis=0)
        return total

    def _natural(self, role: Role, value: float) -> float:
        """The score with the sign of its objectives, where they agree on one."""
        directions = {info.direction for info in of_role(self._infos, role)}
        return float(-value if directions == {"minimize"} else value)

    def _draw(self, objective: Objective, recipe: Recipe) -> tuple[str, ...]:
        asked = recipe.search.items
        selection, _ = split_items(objective.item_ids, asked.selection, asked.report, self._seed)
        return tuple(sorted(nested_order(selection, self._seed)[: self._section.items]))

    def _too_much(self, look: Look) -> str | None:
        bound = self._section.max_general_drop
        if bound is None or look.sure_drop <= bound:
            return None
        return (
            f"general ability has fallen by {look.drop.estimate:.3g} since the base at step "
            f"{look.step}, surely by more than {bound:g} (by {look.sure_drop:.3g} at least, at "
            f"{self._section.level:.0%} over all {self._num_looks} looks)"
        )


def _change(values: Floats, drawn: Floats, *, since: int, now: int) -> tuple[float, Floats]:
    """A difference of two columns and its bootstrap samples, drawn together."""
    return float(values[now] - values[since]), drawn[:, now] - drawn[:, since]


def figures(look: Look) -> dict[str, float]:
    """What of a look is logged beside the loss."""
    return {
        "backtrack/target": look.target,
        "backtrack/general": look.general,
        "backtrack/target_gain": look.gain.estimate,
        "backtrack/general_drop": look.drop.estimate,
        "backtrack/general_drop_at_least": look.sure_drop,
    }


def require_one_unit(infos: list[ObjectiveInfo]) -> None:
    """Refuse a bound on a mean of numbers that are not of one kind.

    Raises:
        UsageError: Names the units.
    """
    units = sorted({info.unit for info in of_role(infos, "general")})
    if len(units) > 1:
        raise UsageError(
            f"`watch.max_general_drop` is a bound on a mean, but the general objectives are in "
            f"{' and '.join(units)}. Leave it out, or give objectives of one unit."
        )


@contextmanager
def _unseen() -> Iterator[None]:
    """Leave every stream of random numbers as it was: training draws what it would have drawn."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the libraries' own stream
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
