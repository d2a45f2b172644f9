"""Print what a recipe needs: steps, memory, disk and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack import formatting, terminal

if TYPE_CHECKING:
    from backtrack.train.plan.plan import Plan

_UNKNOWN = "not known"


def print_plan(plan: Plan) -> None:
    """Print what is known of a plan as a table, and its notes, which say what is not and why."""
    rows = [
        ["training", plan.trainer],
        ["parameters of the base", _count(plan.num_parameters)],
        ["trainable parameters", _trainable(plan)],
        ["optimizer steps", _count(plan.num_steps)],
        ["checkpoints saved", _count(plan.num_checkpoints)],
        ["a checkpoint", _bytes(plan.checkpoint_bytes)],
        ["the trajectory", _bytes(plan.trajectory_bytes)],
        ["state for resuming", _bytes(plan.state_bytes)],
        ["memory before activations", _bytes(plan.memory_bytes)],
        ["evaluation a point, at most", _count(plan.evaluation_tokens, " tokens")],
    ]
    known = [row for row in rows if row[1] != _UNKNOWN]
    terminal.print_rows(["what", "how much"], known)
    for note in plan.notes:
        terminal.out.print(f"- {note}", soft_wrap=True)


def _count(number: int | None, unit: str = "") -> str:
    return _UNKNOWN if number is None else f"{number:,}{unit}"


def _trainable(plan: Plan) -> str:
    if plan.num_trainable is None or plan.num_parameters is None:
        return _UNKNOWN
    percent = 100 * plan.num_trainable / plan.num_parameters
    return f"{plan.num_trainable:,} ({percent:.3g} %)"


def _bytes(number: int | None) -> str:
    return _UNKNOWN if number is None else formatting.byte_size(number)
