"""What the drawings show, as plain rows: kinds of marks, paths, domains, names.

Candidates are told by their place in the selection, `id` in a row: what else there is to say about
one stands once in the page, not in every drawing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.point import Point
from backtrack.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from backtrack.records import Interval
    from backtrack.records.selection import Candidate, ReportRow, Selection

Row = dict[str, Any]

MIN_ALPHAS = 3
PADDING = 0.08
FRONT = "front"
TIED = "tied with the best"
CHOSEN = "chosen"
BASE = "base"
FINAL = "final"
TRAINING = "training path, alpha 1"
OTHER_CURVES = "other alpha paths"
OTHER = "other points"
MAX_WAYMARKS = 24
"""Texts along the paths; beyond, every second one is left out, and so on."""
TRAINING_COLOUR = "#2b83c6"
FINAL_COLOUR = "#c98a00"
OTHER_CURVE_COLOUR = "#009e73"
FRONT_COLOUR = "#8d949e"
TIED_COLOUR = "#b0599c"
CHOSEN_COLOUR = "#d9480f"

DISC = "circle"
DASHES = "M-1.4,-0.2H-0.3V0.2H-1.4ZM0.3,-0.2H1.4V0.2H0.3Z"
PLUS = "M-0.13,-1H0.13V-0.13H1V0.13H0.13V1H-0.13V0.13H-1V-0.13H-0.13Z"
RING = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0ZM-0.78,0A0.78,0.78,0,1,0,0.78,0A0.78,0.78,0,1,0,-0.78,0Z"
)
STAR = (
    "M0,-1L0.28,-0.31L1,-0.31L0.42,0.13L0.64,0.85"
    "L0,0.42L-0.64,0.85L-0.42,0.13L-1,-0.31L-0.28,-0.31Z"
)


@dataclass(frozen=True)
class Kind:
    """A kind of mark: told by shape as well as by colour.

    Colours are from the palette of Okabe and Ito, moved to middle lightness where they would be
    lost on white or on black.
    """

    name: str
    colour: str
    shape: str
    size: int


@dataclass(frozen=True)
class Name:
    """A text that belongs next to a candidate; one that is not needed gives way to anything."""

    place: int
    text: str
    is_needed: bool


@dataclass(frozen=True)
class Path:
    """Candidates in the order a line goes through them, the base first."""

    kind: str
    ids: tuple[int, ...]


class Drawing:
    """A selection as the charts need it. Points whose scores are not finite are left out.

    Attributes:
        selection: What is drawn.
        ids: Its drawable candidates, in the order of measuring.
        training: The training path: the base, then each checkpoint at full strength.
        curves: Paths along alpha with enough strengths, the last step's first.
        front: The front, from its poorest to its best target.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.ids = tuple(i for i, c in enumerate(selection.candidates) if _is_drawable(c))
        self._places = {selection.candidates[i].point: i for i in self.ids}
        self.training = Path(TRAINING, self._training())
        self.curves = self._curves()
        self.front = self._front()
        self._kinds = self._kinds_of_own()

    def candidate(self, place: int) -> Candidate:
        return self.selection.candidates[place]

    def place(self, point: Point) -> int | None:
        """Where a drawable candidate stands."""
        return self._places.get(point)

    @property
    def base(self) -> int | None:
        return self.place(Point.base())

    @property
    def chosen(self) -> int | None:
        return self.place(self.selection.chosen.canonical)

    @property
    def final(self) -> int | None:
        return self.place(self.selection.final.canonical)

    @property
    def reading(self) -> ReportRow | None:
        """The chosen point's scores on the report items."""
        row = self.selection.report.get("chosen")
        is_drawable = row is not None and _is_finite(row.target) and _is_finite(row.general)
        return row if is_drawable and self.chosen is not None else None

    @property
    def reading_name(self) -> str:
        return f"chosen, {self.selection.level:.0%} intervals"

    def kinds(self, names: Container[str]) -> tuple[Kind, ...]:
        """Kinds of these names, in the legend's order: the choice comes first."""
        found = (kind for kind in self._all_kinds() if kind.name in names)
        return tuple(sorted(found, key=lambda kind: kind.name != CHOSEN))

    def marks(self) -> list[Row]:
        """One row a mark of the plane, those to be drawn last at the end."""
        order = {kind.name: i for i, kind in enumerate(self._all_kinds())}
        rows = [self.row(i, self._kinds[i]) for i in self.ids]
        return sorted(rows, key=lambda row: (row["kind"] != OTHER, order[row["kind"]]))

    def curve_marks(self) -> list[Row]:
        """One row a mark of the panels along alpha; a curve's end is of its own kind there."""
        rows = [] if self.base is None else [self.row(self.base, BASE)]
        return rows + [self.row(i, curve.kind) for curve in self.curves for i in curve.ids[1:]]

    def overlay(self) -> list[Row]:
        """Rings around tied points, the reading's cross, then the mark of the chosen one."""
        rows = [self.row(i, TIED) for i in self.ids if self.candidate(i).is_tied]
        if self.chosen is None:
            return rows
        if self.reading is not None:
            at = {role: getattr(self.reading, role).estimate for role in ROLES}
            rows.append(self.row(self.chosen, self.reading_name) | at)
        return [*rows, self.row(self.chosen, CHOSEN)]

    def cross(self) -> list[Row]:
        """The chosen point's intervals on the report items, around their estimates."""
        if self.reading is None:
            return []
        target, general = self.reading.target, self.reading.general
        return [
            {"target": target.low, "target_end": target.high}
            | {"general": general.estimate, "general_end": general.estimate},
            {"target": target.estimate, "target_end": target.estimate}
            | {"general": general.low, "general_end": general.high},
        ]

    def lines(self, paths: Sequence[Path]) -> list[Row]:
        """The corners of each path, in order."""
        return [
            self.row(i, path.kind) | {"path": number, "place": place}
            for number, path in enumerate(paths)
            for place, i in enumerate(path.ids)
        ]

    def bands(self) -> list[Row]:
        """Intervals of smoothed scores along each curve, in order; none of older selections."""
        return [
            {"kind": curve.kind, "path": number, "alpha": self.candidate(i).point.alpha, **ends}
            for number, curve in enumerate(self.curves)
            for i in curve.ids
            if (ends := band(self.candidate(i)))
        ]

    def row(self, place: int, kind: str) -> Row:
        """A mark."""
        candidate = self.candidate(place)
        fields = ("target", "general", *(f"score_{i}" for i in self.several))
        return {
            "id": place,
            "kind": kind,
            "alpha": candidate.point.alpha,
            "is_feasible": candidate.is_feasible,
            **{field: self.value(place, field) for field in fields},
        }

    def value(self, place: int, field: str) -> float | None:
        """What a mark shows on an axis: `target`, `general` or `score_N`."""
        candidate = self.candidate(place)
        if field in ROLES:
            return candidate.target if field == "target" else candidate.general
        info = self.selection.objectives[int(field.removeprefix("score_"))]
        score = candidate.scores.get(info.name, math.nan)
        shown = formatting.shown_unit(info.unit)[1] * score
        return shown if math.isfinite(shown) else None

    @property
    def several(self) -> tuple[int, ...]:
        """Objectives that share their role with others, so that the role's score is not theirs."""
        roles = [objective.role for objective in self.selection.objectives]
        return tuple(i for i, role in enumerate(roles) if roles.count(role) > 1)

    def domain(self, field: str, ids: Iterable[int] | None = None) -> list[float]:
        """Lowest and highest value an axis shows, with some room.

        Args:
            field: What it shows.
            ids: Points along alpha, whose bands are shown too; all points if not given.
        """
        found = (self.value(i, field) for i in (self.ids if ids is None else ids))
        values = [value for value in found if value is not None]
        if ids is not None and field in ROLES:
            values += [row[f"{field}_{end}"] for row in self.bands() for end in ("low", "high")]
        if ids is None and self.reading is not None:
            reading: Interval = getattr(self.reading, field)
            values += [reading.low, reading.high]
        return padded(values)

    def axis(self, field: str) -> tuple[str, str, bool]:
        """Name and unit of an axis, and whether less is better: its scale runs backwards then."""
        if field in ROLES:
            axis = self.selection.axes[field]
            return field.capitalize(), axis.unit, axis.direction == "minimize"
        info = self.selection.objectives[int(field.removeprefix("score_"))]
        return info.name, formatting.shown_unit(info.unit)[0], info.direction == "minimize"

    def ends(self, field: str, ids: Iterable[int] | None = None) -> tuple[float, float]:
        """Value at an axis's worse end (left, bottom) and at its better one."""
        low, high = self.domain(field, ids)
        return (high, low) if self.axis(field)[2] else (low, high)

    def along_alpha(self) -> tuple[int, ...]:
        """Points the panels along alpha show: each curve's, and the choice, each once."""
        found = [i for curve in self.curves for i in curve.ids]
        return tuple(dict.fromkeys([*found, *([] if self.chosen is None else [self.chosen])]))

    def names(
        self, ids: Iterable[int], *, is_short: bool = False, has_choice: bool = True
    ) -> list[Name]:
        """Names of the choice, the base and the final; one text where two are one point."""
        ends = {BASE: Point.base(), FINAL: self.selection.final}
        ends = {CHOSEN: self.selection.chosen, **ends} if has_choice else ends
        words: dict[int, list[str]] = {}
        for word, point in ends.items():
            place = self.place(point.canonical)
            if place is not None and place in ids:
                words.setdefault(place, []).append(word)
        found = []
        for place, said in words.items():
            is_plain = is_short or said != [CHOSEN]
            text = " = ".join(said) if is_plain else f"chosen: {self.candidate(place).point}"
            found.append(Name(place, text, is_needed=True))
        return found

    def waymarks(self) -> list[Name]:
        """Steps along the training path and alphas along the last step's curve."""
        named = {name.place for name in self.names(self.ids)}
        steps = [(i, f"step {self.candidate(i).point.step}") for i in self.training.ids]
        main = self.curves[0].ids if self.curves else ()
        alphas = [(i, f"alpha {self.candidate(i).point.alpha:g}") for i in main]
        alphas = [(i, text) for i, text in alphas if 0 < self.candidate(i).point.alpha != 1]
        found = [(i, text) for i, text in (*steps, *alphas) if i not in named]
        every = math.ceil(len(found) / MAX_WAYMARKS) or 1
        return [Name(i, text, is_needed=False) for i, text in found[::every]]

    def _all_kinds(self) -> tuple[Kind, ...]:
        return (
            Kind(BASE, "#6f7782", "square", 130),
            Kind(TRAINING, TRAINING_COLOUR, DISC, 78),
            Kind(self._main_name, FINAL_COLOUR, "triangle-up", 78),
            Kind(OTHER_CURVES, OTHER_CURVE_COLOUR, "diamond", 78),
            Kind(OTHER, FRONT_COLOUR, "cross", 48),
            Kind(FRONT, FRONT_COLOUR, DASHES, 60),
            Kind(TIED, TIED_COLOUR, RING, 210),
            Kind(self.reading_name, CHOSEN_COLOUR, PLUS, 110),
            Kind(CHOSEN, CHOSEN_COLOUR, STAR, 460),
        )

    def _kinds_of_own(self) -> dict[int, str]:
        """The kind of each candidate's own mark."""
        found = dict.fromkeys(self.ids, OTHER)
        for path in (*reversed(self.curves), self.training):
            found |= dict.fromkeys(path.ids[1:], path.kind)
        return found | ({} if self.base is None else {self.base: BASE})

    @property
    def _main_name(self) -> str:
        final = self.selection.final
        end = "" if final.profile == "uniform" else f", {final.profile}"
        return f"alpha path to step {final.step}{end}"

    def _training(self) -> tuple[int, ...]:
        points = {i: self.candidate(i).point for i in self.ids}
        whole = [i for i, p in points.items() if p.alpha == 1 and p.profile == "uniform"]
        return (*self._start(), *sorted(whole, key=lambda i: points[i].step))

    def _front(self) -> tuple[int, ...]:
        sign = 1 if self.selection.axes["target"].direction == "maximize" else -1
        found = (i for i in self.ids if self.candidate(i).is_on_front)
        return tuple(sorted(found, key=lambda i: sign * self.candidate(i).target))

    def _curves(self) -> tuple[Path, ...]:
        final = self.selection.final
        groups: dict[tuple[int, str], list[int]] = {(final.step, final.profile): []}
        for i in self.ids:
            point = self.candidate(i).point
            if not point.is_base:
                groups.setdefault((point.step, point.profile), []).append(i)
        curves = []
        for key, members in groups.items():
            is_main = key == (final.step, final.profile)
            if is_main or len(members) >= MIN_ALPHAS:
                ordered = sorted(members, key=lambda i: self.candidate(i).point.alpha)
                kind = self._main_name if is_main else OTHER_CURVES
                curves.append(Path(kind, (*self._start(), *ordered)))
        return tuple(curves)

    def _start(self) -> tuple[int, ...]:
        return () if self.base is None else (self.base,)


def padded(values: Sequence[float]) -> list[float]:
    """Lowest and highest value with some room beyond, never of no width."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    is_flat = high - low <= 1e-9 * abs(high)
    room = max(0.01 * abs(high), 1e-6) if is_flat else PADDING * (high - low)
    return [low - room, high + room]


def _is_drawable(candidate: Candidate) -> bool:
    return math.isfinite(candidate.target) and math.isfinite(candidate.general)


def _is_finite(interval: Interval) -> bool:
    return all(map(math.isfinite, (interval.estimate, interval.low, interval.high)))


def band(candidate: Candidate) -> dict[str, float]:
    """Low and high of the smoothed target, then of general; empty where one is missing."""
    pairs = {"target": candidate.target_band, "general": candidate.general_band}
    if any(pair is None or not all(map(math.isfinite, pair)) for pair in pairs.values()):
        return {}
    return {
        f"{role}_{end}": value
        for role, pair in pairs.items()
        for end, value in zip(("low", "high"), pair or (), strict=True)
    }
