"""Evaluate both roles on a few items during training, and stop before too much is lost.

A PROBE EVALUATION scores the live model by the recipe's objectives, each on the same few selection
items every time (the report items stay unseen); the first is at the base. Scores are compared with
the base's item by item. Training stops if the lower bound of the drop in general ability exceeds
`watch.max_general_drop`; the bound is that of a one-sided bootstrap interval. Its level is divided
among all evaluations of the training (Bonferroni), so at the default level, of a hundred trainings
that never lose more than the bound, at most five are stopped by noise.

Promised: training continues exactly as it would have without evaluations; each evaluation is on
disk, in the run's `watch.jsonl`, before the next step; a resumed training keeps the earlier ones.
Not promised: that few items show a small drop. Fifty yes-or-no items show one of about 15 points.
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

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.measure import require_scores
from backtrack.evaluate.torch_model import TorchModel
from backtrack.recipe import DivergenceObjective
from backtrack.records import FRACTION, ROLES, Interval, Record
from backtrack.run.files import append_line, read_lines, write_atomically
from backtrack.selection.stats.bootstrap import LEVEL, NUM_RESAMPLES, interval, resample_means
from backtrack.selection.stats.items import clusters_of, nested_order, split_items
from backtrack.selection.stats.utility import of_role, role_shares
from backtrack.train.trainers.trajectory_log import log_extra_values
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

PROBE_FILE = "watch.jsonl"
_SAMPLES_IN_THE_TAIL = 10


class ProbeEvaluation(Record):
    """Scores of both roles at one step, and their changes since the base.

    Attributes:
        step: Optimizer steps taken.
        target: Score of the target role; in percent if its objectives are fractions.
        general: Score of the general role; in percent if its objectives are fractions.
        gain: Increase of the target since the base, positive if better, with its 95% interval.
        drop: Decrease of general ability since the base, positive if worse, with its 95% interval.
        drop_lower_bound: Lower bound of the drop, at the level that decides about stopping.
        seconds: Wall time of the evaluation.
        scores: Item scores by objective.
        item_ids: Item ids by objective; in the first evaluation only.
    """

    step: int
    target: float
    general: float
    gain: Interval
    drop: Interval
    drop_lower_bound: float
    seconds: float
    scores: dict[str, tuple[float, ...]]
    item_ids: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class ProbeCallback(TrainerCallback):
    """Runs a probe evaluation at the base, every `watch.every_steps` and at the last step.

    Attributes:
        stop_reason: Why training was stopped; None unless it was.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainer: Any,
        path: Path,
        on_evaluation: Callable[[ProbeEvaluation], None] | None = None,
    ) -> None:
        """Build the objectives and choose their items.

        Args:
            recipe: A recipe with a section `watch`.
            trainer: The trainer; the scores are logged with it.
            path: The run's folder.
            on_evaluation: Called after each evaluation.

        Raises:
            UsageError: A bound is set, but the general objectives have different units.
            ObjectiveError: An objective is not as the recipe says, or a role has none but a
                divergence, which needs the base beside the model in training.
        """
        assert recipe.watch is not None
        self._section: WatchSection = recipe.watch
        self._trainer = trainer
        self._path = path / PROBE_FILE
        self._on_evaluation = on_evaluation
        self._seed = recipe.search.seed
        self._batch_size = recipe.search.batch_size
        self._objectives = build_objectives(without_divergence(recipe), trainer.processing_class)
        self._infos = [objective.info for objective in self._objectives]
        self._items = {o.info.name: self._choose_items(o, recipe) for o in self._objectives}
        self._clusters = {
            o.info.name: clusters_of(self._items[o.info.name], o.clusters)
            for o in self._objectives
        }
        self._at_base: ProbeEvaluation | None = None
        self._num_evaluations = 1
        self.stop_reason: str | None = None
        if self._section.max_general_drop is not None:
            require_one_unit(self._infos)

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Evaluate the base, or read the evaluations before a resume."""
        if any(is_sharded(tensor) for tensor in live["model"].state_dict(keep_vars=True).values()):
            raise UsageError(
                "`watch` generates with the live model, whose weights are sharded. Remove "
                "`watch`, or train without sharding."
            )
        self._num_evaluations = max(math.ceil(state.max_steps / self._section.every_steps), 1)
        if not state.is_world_process_zero:
            return
        earlier = {
            evaluation.step: evaluation
            for evaluation in read_lines(self._path, ProbeEvaluation)
            if evaluation.step <= state.global_step
        }
        if earlier:
            lines = [evaluation.model_dump_json() for evaluation in earlier.values()]
            write_atomically(self._path, "\n".join([*lines, ""]))
        self._at_base = earlier.get(0)
        if self._at_base is None and state.global_step == 0:
            self._evaluate(state, control, live["model"])

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Evaluate if it is due, and stop training if general ability has fallen too far."""
        is_due = state.global_step % self._section.every_steps == 0
        if not is_due and state.global_step < state.max_steps:
            return
        if state.is_world_process_zero and self._at_base is not None:
            self.stop_reason = self._reason_to_stop(self._evaluate(state, control, live["model"]))
        if args.world_size > 1:
            shared = [self.stop_reason]
            broadcast_object_list(shared)
            self.stop_reason = shared[0]
        if self.stop_reason is not None:
            control.should_training_stop = control.should_save = True

    def _evaluate(
        self, state: TrainerState, control: TrainerControl, model: Any
    ) -> ProbeEvaluation:
        begin = time.perf_counter()
        asked = TorchModel(model, self._trainer.processing_class, self._batch_size)
        with _restored_random_states():
            scores = {
                o.info.name: o.measure(asked, self._items[o.info.name]) for o in self._objectives
            }
        for info in self._infos:
            where, items = f"step {state.global_step}", self._items[info.name]
            require_scores(info, where, items, scores[info.name])
        evaluation = self._summarize(state.global_step, scores, time.perf_counter() - begin)
        append_line(self._path, evaluation.model_dump_json())
        log_extra_values(self._trainer, control, logged_values(evaluation))
        if self._on_evaluation is not None:
            self._on_evaluation(evaluation)
        return evaluation

    def _summarize(
        self, step: int, scores: dict[str, tuple[float, ...]], seconds: float
    ) -> ProbeEvaluation:
        base_scores = scores if self._at_base is None else self._at_base.scores
        pairs = {name: np.array([base_scores[name], scores[name]]) for name in scores}
        level = (1 - self._section.level) / self._num_evaluations
        num = max(NUM_RESAMPLES, math.ceil(_SAMPLES_IN_THE_TAIL / level))
        values = {
            role: self._role(role, {n: p.mean(axis=1) for n, p in pairs.items()}) for role in ROLES
        }
        means = {
            name: resample_means(
                pair, self._clusters[name], seed=self._seed, name=name, num_resamples=num
            )
            for name, pair in pairs.items()
        }
        samples = {role: self._role(role, means) for role in ROLES}
        gain, gains = _change(values["target"], samples["target"], since=0, now=1)
        drop, drops = _change(values["general"], samples["general"], since=1, now=0)
        evaluation = ProbeEvaluation(
            step=step,
            target=self._in_own_direction("target", values["target"][1]),
            general=self._in_own_direction("general", values["general"][1]),
            gain=interval(gain, gains, LEVEL),
            drop=interval(drop, drops, LEVEL),
            drop_lower_bound=float(np.quantile(drops, level)),
            seconds=seconds,
            scores=scores,
            item_ids=self._items if self._at_base is None else {},
        )
        self._at_base = self._at_base or evaluation
        return evaluation

    def _role(self, role: Role, means: dict[str, Floats]) -> Floats:
        """Return a role's score, higher is better: percent for fractions, else in their unit."""
        shares = role_shares(self._infos, role)
        parts = [
            shares[info.name] * means[info.name]
            * (100 if info.unit == FRACTION else 1)
            * (1 if info.direction == "maximize" else -1)
            for info in of_role(self._infos, role)
        ]  # fmt: skip
        total: Floats = np.sum(parts, axis=0)
        return total

    def _in_own_direction(self, role: Role, value: float) -> float:
        """Negate the score back if all the role's objectives are minimized."""
        directions = {info.direction for info in of_role(self._infos, role)}
        return float(-value if directions == {"minimize"} else value)

    def _choose_items(self, objective: Objective, recipe: Recipe) -> tuple[str, ...]:
        num = recipe.search.items
        clusters = objective.clusters
        selection, _ = split_items(
            objective.item_ids, num.selection, num.report, self._seed, clusters
        )
        return tuple(sorted(nested_order(selection, self._seed, clusters)[: self._section.items]))

    def _reason_to_stop(self, evaluation: ProbeEvaluation) -> str | None:
        """Return why training must stop; None if it need not."""
        bound = self._section.max_general_drop
        if bound is None or evaluation.drop_lower_bound <= bound:
            return None
        return (
            f"general ability has fallen by {evaluation.drop.estimate:.3g} since the base at step "
            f"{evaluation.step}, and by at least {evaluation.drop_lower_bound:.3g} with "
            f"{self._section.level:.0%} confidence over all {self._num_evaluations} evaluations; "
            f"the bound is {bound:g}"
        )


def _change(values: Floats, samples: Floats, *, since: int, now: int) -> tuple[float, Floats]:
    """Return a difference of two columns and its paired bootstrap samples."""
    return float(values[now] - values[since]), samples[:, now] - samples[:, since]


def logged_values(evaluation: ProbeEvaluation) -> dict[str, float]:
    """Return what is logged of an evaluation beside the loss."""
    return {
        "backtrack/target": evaluation.target,
        "backtrack/general": evaluation.general,
        "backtrack/target_gain": evaluation.gain.estimate,
        "backtrack/general_drop": evaluation.drop.estimate,
        "backtrack/general_drop_at_least": evaluation.drop_lower_bound,
    }


def without_divergence(recipe: Recipe) -> Recipe:
    """The recipe without divergences from the base, which is not beside the model in training.

    Raises:
        ObjectiveError: No other general objective is left.
    """
    kept = tuple(o for o in recipe.objectives if not isinstance(o, DivergenceObjective))
    if not any(o.role == "general" for o in kept):
        raise ObjectiveError(
            "`watch` measures the model in training, which has no base beside it to diverge "
            "from, and there is no other objective of `role: general`. Add one, or remove `watch`."
        )
    return recipe.model_copy(update={"objectives": kept})


def require_one_unit(infos: list[ObjectiveInfo]) -> None:
    """Refuse a bound on the mean of general objectives with different units.

    Raises:
        UsageError: Names the units.
    """
    units = sorted({info.unit for info in of_role(infos, "general")})
    if len(units) > 1:
        raise UsageError(
            f"`watch.max_general_drop` is a bound on a mean, but the general objectives are in "
            f"{' and '.join(units)}. Remove it, or use objectives of one unit."
        )


@contextmanager
def _restored_random_states() -> Iterator[None]:
    """Restore all random states afterwards, so that training draws the same numbers."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the libraries' own stream
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
