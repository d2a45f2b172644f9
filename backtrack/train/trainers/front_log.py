"""Log the measured points and the choice to the trackers that the training reported to.

A selection is a run of its own at each tracker, named by the choice, in the project of the
training: `report_to` and what else the trainer's section says of trackers hold here too, as do the
trackers' environment variables, such as `WANDB_MODE=offline`. A row of metrics a point, in the
order of their target scores; then one of the choice, with the intervals of the report items.

Promised: no tracker can cost the choice, which is on disk before. One that is not installed, or
fails, is said in a sentence.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from backtrack.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backtrack.recipe import Recipe
    from backtrack.records.selection import Candidate, Selection
    from backtrack.run.directory import Run

TRACKERS = ("trackio", "wandb", "mlflow", "tensorboard")
_TAKES_TEXT = ("trackio", "wandb", "tensorboard")
_OF_TRAINING_ALONE = ("deepspeed", "fsdp", "fsdp_config", "parallelism_config")
"""Settings that would start what only training needs."""


def log_front(run: Run, selection: Selection) -> tuple[str, ...]:
    """Log a selection where the trainer's settings name trackers in `report_to`.

    Args:
        run: The run; its recipe of choosing goes before that of training.
        selection: The selection.

    Returns:
        A sentence for each tracker that was named and has nothing of it.
    """
    recipe = _reporting(run)
    named = [] if recipe is None else _named(recipe.trainer_settings["report_to"])
    notes = [
        f"report_to names {name}, where the front is not logged: it goes to {', '.join(TRACKERS)}."
        for name in named
        if name not in TRACKERS
    ]
    for name in named:
        if recipe is not None and name in TRACKERS:
            notes += _log_to(name, run, recipe, selection)
    return tuple(notes)


def _reporting(run: Run) -> Recipe | None:
    """The recipe whose trainer settings say where to report, if one does."""
    choosing = run.choosing.recipe if run.choosing else None
    recipes = [recipe for recipe in (choosing, run.recipe) if recipe is not None]
    return next((r for r in recipes if "report_to" in r.trainer_settings), None)


def _named(report_to: str | list[str] | None) -> list[str]:
    """The trackers of a `report_to`; `all` is those that are installed, and may be none."""
    from transformers.integrations.integration_utils import (
        get_available_reporting_integrations,
    )

    named = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if "all" in named:
        installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
        return [tracker for tracker in TRACKERS if tracker in installed]
    return [name for name in named if name != "none"]


def _log_to(name: str, run: Run, recipe: Recipe, selection: Selection) -> list[str]:
    from transformers.integrations.integration_utils import (
        get_reporting_integration_callbacks,
    )

    try:
        (kind,) = get_reporting_integration_callbacks(name)  # type: ignore[no-untyped-call]
        callback = kind()
    except RuntimeError:
        return [
            f"{name} is named in report_to and is not installed here, so the front is not logged "
            f"to it: pip install {name}."
        ]
    try:
        with redirect_stdout(sys.stderr):  # standard output is that of `select --json`
            _send(callback, run, recipe, selection, takes_text=name in _TAKES_TEXT)
    except Exception as error:  # noqa: BLE001  # trackers raise anything, of the network too
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return [f"{name} did not take the front ({first}). The choice is in selection.json."]
    return []


def _send(
    callback: Any, run: Run, recipe: Recipe, selection: Selection, *, takes_text: bool
) -> None:
    from transformers import TrainerControl, TrainerState

    args, state, control = _arguments(run, recipe, selection), TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    for state.global_step, row in enumerate(rows(selection)):
        taken = {k: v for k, v in row.items() if takes_text or not isinstance(v, str)}
        callback.on_log(args, state, control, logs=taken)
    callback.on_train_end(args, state, control)
    wandb = getattr(callback, "_wandb", None)
    if wandb is not None:  # which the Trainer leaves open until the process ends
        wandb.finish()


def _arguments(run: Run, recipe: Recipe, selection: Selection) -> Any:
    """The training's arguments, for a selection on any machine."""
    from backtrack.train.trainers.paradigms import trainer_config
    from backtrack.train.trainers.resume import TRAINER_FOLDER

    settings = recipe.trainer_settings.items()
    kept = {name: value for name, value in settings if name not in _OF_TRAINING_ALONE}
    ours = {
        "use_cpu": True,
        "run_name": f"{selection.run}: {selection.chosen} at weight {selection.weight:g}",
        "trackio_static_space_id": False,
    }
    folder = run.path / TRAINER_FOLDER
    return trainer_config(recipe.paradigm, {**kept, **ours}, folder, recipe.seed)


def rows(selection: Selection) -> Iterator[dict[str, float | str]]:
    """The metrics of each measured point, and then of the choice.

    Trackers of the Trainer show `eval_front/target` as `eval/front/target`, or leave it so.
    """
    for candidate in sorted(selection.candidates, key=lambda c: c.smoothed_target):
        yield _named_metrics("front", _of_candidate(candidate))
    chosen = _of_candidate(selection.candidate(selection.chosen))
    row = selection.report["chosen"]
    for name in (*ROLES, "utility"):
        interval = getattr(row, name)
        chosen |= {name: interval.estimate, f"{name}_low": interval.low}
        chosen |= {f"{name}_high": interval.high}
    yield _named_metrics("chosen", {**chosen, "weight": selection.weight})


def _of_candidate(candidate: Candidate) -> dict[str, float | str]:
    point = candidate.point
    return {
        "point": str(point),
        "step": float(point.step),
        "alpha": point.alpha,
        "target": candidate.smoothed_target,
        "general": candidate.smoothed_general,
        "utility": candidate.smoothed,
        "share_of_items": candidate.share,
        "is_on_front": float(candidate.is_on_front),
        "is_feasible": float(candidate.is_feasible),
        **{f"scores/{name}": score for name, score in candidate.scores.items()},
    }


def _named_metrics(kind: str, values: Mapping[str, float | str]) -> dict[str, float | str]:
    return {f"eval_{kind}/{name}": value for name, value in values.items()}
