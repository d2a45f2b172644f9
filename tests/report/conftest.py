"""Two simulated selections: percentages to maximize, and losses to minimize."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.records import Axis, CheckpointEntry, Interval, Measurement, ObjectiveInfo
from backtrack.records.selection import (
    Candidate,
    Constraints,
    Difference,
    ReportRow,
    Selection,
    Yardstick,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = (50, 100, 150, 200, 250, 300, 350, 400)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2)


def objective(name: str, role: str, unit: str = "fraction", direction: str = "maximize"):
    return ObjectiveInfo(
        name=name,
        role=role,
        kind="lm_eval" if unit == "fraction" else "text",
        direction=direction,
        unit=unit,
        fingerprint="0" * 16,
    )


def around(estimate: float, half: float) -> Interval:
    return Interval(estimate=estimate, low=estimate - half, high=estimate + 0.9 * half)


def points(steps: Sequence[int] = STEPS, alphas: Sequence[float] = ALPHAS) -> list[Point]:
    found = [Point.base(), *(Point(step=s) for s in steps)]
    found += [Point(step=steps[-1], alpha=a) for a in alphas]
    if len(steps) > 4:
        found += [Point(step=250, alpha=a) for a in (0.3, 0.5, 0.75)]
        found.append(Point(step=400, alpha=0.6, profile="safe"))
    return found


def distance(point: Point) -> float:
    """Distance of a point from the base, in lengths of the whole run."""
    return point.alpha * (1 - math.exp(-point.step / 150))


def percent_scores(point: Point) -> tuple[float, float]:
    """Target and general in percent: the target saturates, general falls ever faster."""
    far = distance(point)
    noise = np.random.default_rng(point.step * 7 + round(100 * point.alpha)).normal(0, 0.5, 2)
    target = 31.5 + 38 * (1 - math.exp(-2.6 * far)) - 7 * max(0.0, far - 0.85)
    general = 66 + 3 * far - 13 * far**2.2 - (1.5 if point.alpha == 1 else 0.0)
    return float(target + noise[0]), float(general + noise[1])


def build(
    measured: Sequence[Point],
    scores_of: Callable[[Point], tuple[float, float]],
    axes: dict[str, Axis],
    objectives: tuple[ObjectiveInfo, ...],
    **given,
) -> Selection:
    """A selection over `measured`; the chosen point is given, or that of highest utility."""
    found = {p.canonical: scores_of(p) for p in measured}
    signs = [1 if axes[r].direction == "maximize" else -1 for r in ("target", "general")]
    scale = 1.0 if axes["general"].unit == "%" else 40.0
    utilities = {
        p: (0.5 * signs[0] * t + 0.5 * signs[1] * g * scale) for p, (t, g) in found.items()
    }
    top = max(utilities.values())
    final = max((p for p in found if p.alpha == 1), key=lambda p: p.step)
    chosen = given.pop("chosen", max(utilities, key=lambda p: utilities[p]))
    num_tied = given.pop("num_tied", 4)
    tied = set(sorted(utilities, key=lambda p: -utilities[p])[:num_tied])

    def values(p: Point) -> dict[str, float]:
        by_role = dict(zip(("target", "general"), found[p], strict=True))
        return {
            o.name: by_role[o.role] / (100 if o.unit == "fraction" else 1) * (1 + 0.02 * i)
            for i, o in enumerate(objectives)
        }

    def is_on_front(p: Point) -> bool:
        mine = [s * v for s, v in zip(signs, found[p], strict=True)]
        theirs = [[s * v for s, v in zip(signs, other, strict=True)] for other in found.values()]
        return not any(o[0] >= mine[0] and o[1] >= mine[1] and o != mine for o in theirs)

    candidates = tuple(
        Candidate(
            point=p,
            scores=values(p),
            target=t,
            general=g,
            utility=utilities[p],
            smoothed=utilities[p] - 0.1,
            smoothed_target=t - 0.1,
            smoothed_general=g - 0.1,
            distance=11.7 * distance(p),
            origin="anchor" if p.alpha in (0, 1) else "sampler",
            is_on_front=is_on_front(p),
            is_feasible=axes["general"].unit != "%" or g > found[Point.base()][1] - 10,
            is_tied=p in tied,
            chance_best=round(math.exp((utilities[p] - top) / 0.9) / 4, 4),
        )
        for p, (t, g) in found.items()
    )

    def row(p: Point) -> ReportRow:
        t, g = found[p]
        return ReportRow(
            point=p,
            scores=values(p),
            target=around(t - 0.6 * signs[0], 0.03 * t),
            general=around(g - 0.2 * signs[1] / scale, 0.03 * g),
            utility=around(utilities[p] - 0.8, 1.9),
        )

    def difference(to: str, other: Point) -> Difference:
        return Difference(
            to=to,
            target=around(found[chosen][0] - found[other][0], 1.9),
            general=around(found[chosen][1] - found[other][1], 2.2 / scale),
            utility=around(utilities[chosen] - utilities[other], 1.4),
            items_to_settle=None if chosen == other else 1640,
        )

    settings = {
        "run": "qwen2.5-1.5b-gsm8k-lora",
        "weight": 0.5,
        "constraints": Constraints(max_general_drop=10, keep_gain=0.8),
        "form": "attached",
        "curve": "native",
        "settings": {o.name: f"setting of {o.name}" for o in objectives},
        "optimism": 0.8,
        "num_items": {o.name: {"selection": 400, "report": 919} for o in objectives},
        "level": 0.95,
        "num_resamples": 10_000,
        "seed": 17,
        "verdict": (
            f"{chosen} is better than the final checkpoint by 3.1 points of utility "
            "[1.5, 4.4] on 919 report items a role; 4 points cannot be told apart from the best."
        ),
        "notes": (
            "general has 400 selection items: differences below 1.9 points cannot be detected.",
            "The points of step 250 are not smoothed: their utility is as measured.",
        ),
        "command": "backtrack select runs/qwen --weight 0.5 --max-general-drop 10 --keep-gain 0.8",
        "created": "2001-02-03T04:05:06+00:00",
        "yardsticks": {
            o.name: Yardstick(zero=0, hundred=1)
            if o.unit == "fraction"
            else Yardstick(zero=3.5, hundred=1.0)
            for o in objectives
        },
    }
    return Selection(
        **(settings | given),
        chosen=chosen,
        base=Point.base(),
        final=final,
        objectives=objectives,
        axes=axes,
        candidates=candidates,
        report={"base": row(Point.base()), "chosen": row(chosen), "final": row(final)},
        differences=(difference("final", final), difference("base", Point.base())),
    )


PERCENT = Axis(unit="%", direction="maximize")
NATS = Axis(unit="nats a token", direction="minimize")


def make_percents(measured: Sequence[Point] | None = None, **given) -> Selection:
    """Two objectives in percent; more is better."""
    objectives = (objective("gsm8k", "target"), objective("mmlu", "general"))
    return build(
        points() if measured is None else measured,
        percent_scores,
        {"target": PERCENT, "general": PERCENT},
        given.pop("objectives", objectives),
        **given,
    )


def make_nats(**given) -> Selection:
    """A percentage to maximize against the losses of two texts to minimize."""

    def scores_of(point: Point) -> tuple[float, float]:
        target, general = percent_scores(point)
        return target, 2.05 + (66 - general) / 40

    texts = ("wikitext", "pile of laws")
    return build(
        points(),
        scores_of,
        {"target": PERCENT, "general": NATS},
        (
            objective("gsm8k", "target"),
            *(objective(name, "general", "nats a token", "minimize") for name in texts),
        ),
        run="llama-3.2-1b-oft",
        **given,
    )


def make_entries(steps: Sequence[int] = STEPS) -> tuple[CheckpointEntry, ...]:
    return tuple(
        CheckpointEntry(
            step=s,
            folder=f"step-{s:08d}",
            num_bytes=17_400_000,
            sha256={"adapter_model.safetensors": "0" * 64},
            train_loss=round(1.9 * math.exp(-s / 300), 3),
        )
        for s in steps
    )


def make_measurements(selection: Selection) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            point=c.point,
            setting=selection.settings[o.name],
            objective=o,
            form=selection.form,
            curve=selection.curve,
            split="selection",
            item_ids=("all/0", "all/1"),
            scores=(c.scores[o.name], c.scores[o.name]),
            distance=c.distance,
            seconds=31.0,
            origin=c.origin,
        )
        for c in selection.candidates
        for o in selection.objectives
    )


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """Functions that make other records than the two fixtures."""
    return SimpleNamespace(
        percents=make_percents, entries=make_entries, measurements=make_measurements
    )


@pytest.fixture(scope="session")
def percents() -> Selection:
    return make_percents()


@pytest.fixture(scope="session")
def nats() -> Selection:
    return make_nats()
