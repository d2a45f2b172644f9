"""The page's sentences and key figures: the choice, how it was measured, chart captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack import formatting
from backtrack.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import CheckpointEntry, Measurement
    from backtrack.records.selection import Selection

YARDSTICK = (
    "A score becomes points as 100 \N{MULTIPLICATION SIGN} (score \N{MINUS SIGN} zero) / "
    "(hundred \N{MINUS SIGN} zero), so that objectives of any scale can be weighed together. "
    "A loss has no zero: each item counts as 100 times the probability its loss implies."
)


def figures(selection: Selection) -> list[dict[str, str]]:
    """Key figures: the choice, and its utility against final and base."""
    figures = [_choice(selection)]
    for difference in sorted(selection.differences, key=lambda d: d.to != "final"):
        value = wording.interval(difference.utility, "points", is_signed=True)
        comparison = wording.comparison(difference.utility)
        note = f"points of utility, {comparison}"
        figures.append({"name": f"Against the {difference.to}", "value": value, "note": note})
    return figures


def optimism(selection: Selection) -> str:
    """How much larger the chosen point's gain is on selection items than on report items."""
    value = wording.number(selection.optimism, "points", is_signed=True)
    return (
        f"Optimism: {value} points, the chosen point's gain in utility over the base on the "
        "selection items minus that on the report items."
    )


def facts(
    selection: Selection,
    measurements: Sequence[Measurement],
    entries: Sequence[CheckpointEntry],
) -> list[tuple[str, str]]:
    """Name and text of each fact about how the selection was measured."""
    weight = f"{selection.weight:g}"
    rest = f"{1 - selection.weight:.4g}"
    models = {
        "attached": "the adapter attached to the base",
        "merged": "weights merged into a plain model",
    }
    curves = {
        "native": "native: along the method's own parameters",
        "line": "line: straight from the base's weights to the checkpoint's",
    }
    return [
        (
            "Utility",
            f"{weight} \N{MULTIPLICATION SIGN} target + {rest} \N{MULTIPLICATION SIGN} "
            "general, both in points",
        ),
        ("Bounds", "; ".join(wording.bounds_text(selection)) or "none"),
        ("Choice", formatting.how_chosen(selection)),
        ("Claims", formatting.how_claimed(selection)),
        ("Recipe", ", ".join(selection.changes) or "that of training"),
        ("Measured as", models[selection.form]),
        ("Curve", curves[selection.curve]),
        (
            "Intervals",
            f"{selection.level:.0%}, paired bootstrap over items, items of one cluster drawn "
            f"together, {selection.num_resamples:,} resamples, seed {selection.seed}",
        ),
        ("Trajectory", _trajectory(entries)),
        ("Measuring", _measuring(selection, measurements)),
    ]


def captions(selection: Selection) -> dict[str, tuple[str, str]]:
    """Title and caption of each chart."""
    faded = ""
    if any(not c.is_feasible for c in selection.candidates):
        faded = " Faded points miss a bound."
    if any(c.share < 1 for c in selection.candidates):
        faded += " Hollow marks are estimates from some of the items."
    has_bands = any(c.target_band for c in selection.candidates)
    level, bars, bands = f"{selection.level:.0%}", "", ""
    if has_bands:
        bars = f" Grey bars are the {level} intervals of the front."
        bands = f" Bands are their {level} intervals."
    plane = (
        "Right and up is better. Curves and front are smoothed scores, which decide the choice; "
        f"marks are the measured ones, on the selection items.{bars} The star is the choice as "
        f"measured on the selection items, by which it was picked. The cross is its {level} "
        "interval on the report items, if it was measured on them: what may be claimed. The two "
        f"differ by luck.{faded}"
    )
    alpha = (
        "The same scores by strength, on the selection items; up is better. Curves are the "
        f"smoothed scores.{bands} Marks are the measured ones.{faded}"
    )
    return {"plane": ("Target against general", plane), "alpha": ("Along alpha", alpha)}


def _choice(selection: Selection) -> dict[str, str]:
    num_tied = len(selection.tied)
    note = f"{num_tied} points cannot be told apart from the best"
    if num_tied <= 1:
        note = "no other point is tied with it"
    return {"name": "Chosen", "value": str(selection.chosen), "note": note}


def _trajectory(entries: Sequence[CheckpointEntry]) -> str:
    if not entries:
        return "not recorded"
    steps = [entry.step for entry in entries]
    size = formatting.byte_size(sum(entry.num_bytes for entry in entries))
    if len(steps) == 1:
        return f"1 checkpoint, step {steps[0]}, {size}"
    return f"{len(steps)} checkpoints, steps {min(steps)} to {max(steps)}, {size}"


def _measuring(selection: Selection, measurements: Sequence[Measurement]) -> str:
    """What the selection's scores have cost; what other settings have is not counted."""
    settings = set(selection.settings.values())
    own = [m for m in measurements if m.setting in settings]
    if not own:
        return "not recorded"
    num_points = len({m.point for m in own})
    seconds = sum(m.seconds for m in own)
    return f"{len(own)} measurements of {num_points} points, {formatting.duration(seconds)}"
