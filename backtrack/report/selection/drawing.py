"""What the charts of a selection show, as plain rows: marks, paths, bands and axes.

A row names its candidate by `id`, the index in the selection: everything else about a candidate is
in the page once, not in every chart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.report.selection import mark_kinds
from backtrack.report.selection.mark_kinds import (
    BASE,
    CHOSEN,
    INTERVAL,
    OTHER,
    OTHER_CURVES,
    TIED,
    TRAINING,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backtrack.records import Interval
    from backtrack.records.selection import Candidate, ReportRow, Selection

Row = dict[str, Any]

MIN_ALPHAS = 3
"""Points a path along alpha needs to be drawn; the path to the final checkpoint always is."""
REPORT_ITEMS = "report items"
PADDING = 0.08
"""Room at each end of an axis, as a share of the range of values."""


@dataclass(frozen=True)
class PathLine:
    """A line through candidates.

    Attributes:
        kind: Name of its mark kind.
        ids: Candidates in order, the base first.
    """

    kind: str
    ids: tuple[int, ...]


class Drawing:
    """A selection as the charts need it. Points whose scores are not finite are left out.

    Attributes:
        selection: What is drawn.
        ids: Its drawable candidates, in the order of measuring.
        training: The training path: the base, then each checkpoint at full strength.
        curves: Paths along alpha with at least `MIN_ALPHAS` points, the final step's first.
        front: The front, from its worst to its best target.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.ids = tuple(i for i, c in enumerate(selection.candidates) if _is_drawable(c))
        self._indices = {selection.candidates[i].point: i for i in self.ids}
        self.training = PathLine(TRAINING, self._training())
        self.curves = self._curves()
        self.front = self._front()
        self._own_kinds = self._find_own_kinds()

    def candidate(self, index: int) -> Candidate:
        return self.selection.candidates[index]

    def index(self, point: Point) -> int | None:
        """Index of a drawable candidate."""
        return self._indices.get(point)

    @property
    def base(self) -> int | None:
        return self.index(Point.base())

    @property
    def chosen(self) -> int | None:
        return self.index(self.selection.chosen.canonical)

    @property
    def final(self) -> int | None:
        return self.index(self.selection.final.canonical)

    @property
    def chosen_report(self) -> ReportRow | None:
        """The chosen point's scores on the report items."""
        row = self.selection.report.get("chosen")
        is_drawable = row is not None and _is_finite(row.target) and _is_finite(row.general)
        return row if is_drawable and self.chosen is not None else None

    def marks(self) -> list[Row]:
        """One row per mark of the plane, those drawn last at the end."""
        order = {kind.name: i for i, kind in enumerate(mark_kinds.all_kinds(self.selection))}
        rows = [self.row(i, self._own_kinds[i]) for i in self.ids]
        return sorted(rows, key=lambda row: (row["kind"] != OTHER, order[row["kind"]]))

    def curve_marks(self) -> list[Row]:
        """One row per mark of the panels along alpha; there a curve's end has the curve's kind."""
        rows = [] if self.base is None else [self.row(self.base, BASE)]
        return rows + [self.row(i, curve.kind) for curve in self.curves for i in curve.ids[1:]]

    def overlay(self) -> list[Row]:
        """Rings around tied points, the chosen point's report score, then the chosen point."""
        tied = [i for i in self.ids if self.candidate(i).is_tied]
        rows = [self.row(i, TIED) for i in tied if self.selection.has_ties]
        if self.chosen is None:
            return rows
        if self.chosen_report is not None:
            scores = {role: getattr(self.chosen_report, role).estimate for role in ROLES}
            rows.append(self.row(self.chosen, INTERVAL) | scores)
        return [*rows, self.row(self.chosen, CHOSEN)]

    def cross(self) -> list[Row]:
        """The chosen point's intervals on the report items, as two crossing lines."""
        if self.chosen_report is None:
            return []
        found = {role: getattr(self.chosen_report, role) for role in ROLES}
        ends = {f"{r}_low": v.low for r, v in found.items()}
        ends |= {f"{r}_high": v.high for r, v in found.items()}
        return crossing({role: value.estimate for role, value in found.items()}, ends)

    def cross_label(self) -> list[Row]:
        """What the cross of the chosen point's intervals is drawn from, beside it."""
        if self.chosen_report is None:
            return []
        scores = {role: getattr(self.chosen_report, role).estimate for role in ROLES}
        return [scores | {"text": REPORT_ITEMS}]

    def lines(self, paths: Sequence[PathLine]) -> list[Row]:
        """Each path through the smoothed scores of its candidates, in order.

        Objectives have no smoothed scores of their own: their lines go through the measured ones.
        """
        return [
            self.row(i, path.kind) | {"path": number, "order": order} | smoothed(self.candidate(i))
            for number, path in enumerate(paths)
            for order, i in enumerate(path.ids)
        ]

    def front_bands(self) -> list[Row]:
        """The intervals of the smoothed scores on the front, as two crossing lines each."""
        return [
            row
            for i in self.front
            if (ends := band(self.candidate(i)))
            for row in crossing(smoothed(self.candidate(i)), ends)
        ]

    def bands(self) -> list[Row]:
        """Intervals of smoothed scores along each curve; empty for a selection without them."""
        return [
            {"kind": curve.kind, "path": number, "alpha": self.candidate(i).point.alpha, **ends}
            for number, curve in enumerate(self.curves)
            for i in curve.ids
            if (ends := band(self.candidate(i)))
        ]

    def row(self, index: int, kind: str) -> Row:
        """A mark of a candidate."""
        candidate = self.candidate(index)
        fields = ("target", "general", *(f"score_{i}" for i in self.selection.apart_from_role))
        return {
            "id": index,
            "kind": kind,
            "alpha": candidate.point.alpha,
            "is_feasible": candidate.is_feasible,
            "is_whole": candidate.share == 1,
            **{field: self.value(index, field) for field in fields},
        }

    def value(self, index: int, field: str) -> float | None:
        """A candidate's value on an axis: `target`, `general` or `score_N` of objective N."""
        candidate = self.candidate(index)
        if field in ROLES:
            return candidate.target if field == "target" else candidate.general
        info = self.selection.objectives[int(field.removeprefix("score_"))]
        score = candidate.scores.get(info.name, math.nan)
        shown = formatting.shown_unit(info.unit)[1] * score
        return shown if math.isfinite(shown) else None

    def domain(self, field: str, ids: Iterable[int] | None = None) -> list[float]:
        """Lowest and highest value of an axis, with some room.

        Args:
            field: What the axis shows.
            ids: Points along alpha, whose bands count too; all points if not given.
        """
        points = tuple(self.ids if ids is None else ids)
        numbers = (self.value(i, name) for name in self._alike(field) for i in points)
        values = [value for value in numbers if value is not None]
        if ids is not None and field in ROLES:
            values += [row[f"{field}_{end}"] for row in self.bands() for end in ("low", "high")]
        if ids is None and self.chosen_report is not None:
            interval: Interval = getattr(self.chosen_report, field)
            values += [interval.low, interval.high]
        if ids is None and field in ROLES:
            values += [row[end] for row in self.front_bands() for end in (field, f"{field}_end")]
        low, high = padded(values)
        return (
            [max(low, 0.0), min(high, 100.0)]
            if self.axis(field)[1] == formatting.PERCENT
            else [low, high]
        )

    def _alike(self, field: str) -> tuple[str, ...]:
        """The fields that share an axis: objectives of one unit and direction do."""
        others = (f"score_{i}" for i in self.selection.apart_from_role)
        own = self.axis(field)[1:]
        same = tuple(name for name in others if self.axis(name)[1:] == own)
        return same if field in same else (field,)

    def axis(self, field: str) -> tuple[str, str, bool]:
        """Name and unit of an axis, and whether its scale is reversed since less is better."""
        if field in ROLES:
            axis = self.selection.axes[field]
            return field.capitalize(), axis.unit, axis.direction == "minimize"
        info = self.selection.objectives[int(field.removeprefix("score_"))]
        return info.name, formatting.shown_unit(info.unit)[0], info.direction == "minimize"

    def axis_ends(self, field: str, ids: Iterable[int] | None = None) -> tuple[float, float]:
        """Value at an axis's worse end (left, bottom) and at its better one."""
        low, high = self.domain(field, ids)
        return (high, low) if self.axis(field)[2] else (low, high)

    def alpha_ids(self) -> tuple[int, ...]:
        """Candidates in the panels along alpha: those of each curve and the chosen one."""
        ids = [i for curve in self.curves for i in curve.ids]
        return tuple(dict.fromkeys([*ids, *([] if self.chosen is None else [self.chosen])]))

    def _find_own_kinds(self) -> dict[int, str]:
        """The kind of each candidate's own mark."""
        kinds = dict.fromkeys(self.ids, OTHER)
        for path in (*reversed(self.curves), self.training):
            kinds |= dict.fromkeys(path.ids[1:], path.kind)
        return kinds | ({} if self.base is None else {self.base: BASE})

    def _training(self) -> tuple[int, ...]:
        points = {i: self.candidate(i).point for i in self.ids}
        full = [i for i, p in points.items() if p.alpha == 1 and p.profile == "uniform"]
        return (*self._start(), *sorted(full, key=lambda i: points[i].step))

    def _front(self) -> tuple[int, ...]:
        sign = 1 if self.selection.axes["target"].direction == "maximize" else -1
        ids = (i for i in self.ids if self.candidate(i).is_on_front)
        return tuple(sorted(ids, key=lambda i: sign * smoothed(self.candidate(i))["target"]))

    def _curves(self) -> tuple[PathLine, ...]:
        final = self.selection.final
        groups: dict[tuple[int, str], list[int]] = {(final.step, final.profile): []}
        for i in self.ids:
            point = self.candidate(i).point
            if not point.is_base:
                groups.setdefault((point.step, point.profile), []).append(i)
        curves = []
        for key, members in groups.items():
            is_final = key == (final.step, final.profile)
            if is_final or len(members) >= MIN_ALPHAS:
                ordered = sorted(members, key=lambda i: self.candidate(i).point.alpha)
                kind = mark_kinds.final_path_kind(self.selection) if is_final else OTHER_CURVES
                curves.append(PathLine(kind, (*self._start(), *ordered)))
        return tuple(curves)

    def _start(self) -> tuple[int, ...]:
        return () if self.base is None else (self.base,)


def smoothed(candidate: Candidate) -> dict[str, float]:
    """The smoothed scores of a candidate, by which the rule chooses; else the measured ones."""
    scores = {"target": candidate.smoothed_target, "general": candidate.smoothed_general}
    return {
        role: score if math.isfinite(score) else getattr(candidate, role)
        for role, score in scores.items()
    }


def crossing(middle: Mapping[str, float], ends: Mapping[str, float]) -> list[Row]:
    """Two lines that cross: from low to high along each axis, in the middle of the other."""
    return [
        {
            along: ends[f"{along}_low"], f"{along}_end": ends[f"{along}_high"],
            across: middle[across], f"{across}_end": middle[across],
        }
        for along, across in (ROLES, ROLES[::-1])
    ]  # fmt: skip


def padded(values: Sequence[float]) -> list[float]:
    """Lowest and highest value with some room beyond; the range is never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    is_flat = high - low <= 1e-9 * abs(high)
    room = max(0.01 * abs(high), 1e-6) if is_flat else PADDING * (high - low)
    return [low - room, high + room]


def band(candidate: Candidate) -> dict[str, float]:
    """Low and high of the smoothed target, then of general; empty if one is missing."""
    pairs = {"target": candidate.target_band, "general": candidate.general_band}
    if any(pair is None or not all(map(math.isfinite, pair)) for pair in pairs.values()):
        return {}
    return {
        f"{role}_{end}": value
        for role, pair in pairs.items()
        for end, value in zip(("low", "high"), pair or (), strict=True)
    }


def _is_drawable(candidate: Candidate) -> bool:
    return math.isfinite(candidate.target) and math.isfinite(candidate.general)


def _is_finite(interval: Interval) -> bool:
    return all(map(math.isfinite, (interval.estimate, interval.low, interval.high)))
