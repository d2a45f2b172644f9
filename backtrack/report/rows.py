"""What the drawings show, as plain rows: kinds of marks, curves along alpha, domains, tooltips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack.records import ROLES
from backtrack.report import wording

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from backtrack.records import Candidate, Interval, ReportRow, Role, Selection

Row = dict[str, Any]

MIN_ALPHAS = 3
PADDING = 0.08
FRONT = "front"
TIED = "tied with the best"
CHOSEN = "chosen"
BASE = "base"
FINAL = "final"
TRAINING = "training path, alpha 1"
OTHER = "other points"
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
    """A text that belongs next to a point; one that is not needed gives way to anything."""

    candidate: Candidate
    text: str
    is_needed: bool


@dataclass(frozen=True)
class Curve:
    """Candidates of one step and profile in the order of alpha, the base first."""

    kind: Kind
    candidates: tuple[Candidate, ...]

    @property
    def has_strengths(self) -> bool:
        """Whether there is more to it than the way from the base to the checkpoint."""
        return any(c.point.alpha not in (0.0, 1.0) for c in self.candidates)


class Drawing:
    """A selection as the charts need it. Points whose scores are not finite are left out.

    Attributes:
        selection: What is drawn.
        candidates: Its drawable points, in the order of measuring.
        curves: The last step's curve, and the chosen step's where that is another one.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.candidates = tuple(
            c for c in selection.candidates if math.isfinite(c.target) and math.isfinite(c.general)
        )
        self.curves = self._curves()

    @property
    def base(self) -> tuple[Candidate, ...]:
        return tuple(c for c in self.candidates if c.point.is_base)

    @property
    def chosen(self) -> Candidate | None:
        point = self.selection.chosen.canonical
        return next((c for c in self.candidates if c.point == point), None)

    @property
    def training(self) -> tuple[Candidate, ...]:
        """The training path: the base, then each checkpoint at full strength."""
        whole = [c for c in self.candidates if c.point.alpha == 1 and c.point.profile == "uniform"]
        return (*self.base, *sorted(whole, key=lambda c: c.point.step))

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The front, from its poorest to its best target."""
        sign = 1 if self.selection.axes["target"].direction == "maximize" else -1
        found = (c for c in self.candidates if c.is_on_front)
        return tuple(sorted(found, key=lambda c: sign * c.target))

    @property
    def reading(self) -> ReportRow | None:
        """The chosen point's scores on the report items."""
        row = self.selection.report.get("chosen")
        is_drawable = row is not None and _is_finite(row.target) and _is_finite(row.general)
        return row if is_drawable and self.chosen is not None else None

    def kinds(self, names: Container[str]) -> tuple[Kind, ...]:
        """Kinds of these names, in the legend's order: the choice comes first."""
        found = (kind for kind in self._all_kinds() if kind.name in names)
        return tuple(sorted(found, key=lambda kind: kind.name != CHOSEN))

    def marks(self) -> list[Row]:
        """One row a mark of the plane, those to be drawn last at the end."""
        rows = [self.row(c, self._kind_of(c)) for c in self.candidates]
        rows += self.overlays(self.candidates)
        if self.reading is not None and self.chosen is not None:
            rows.append(self._reading_row(self.chosen, self.reading))
        order = {kind.name: i for i, kind in enumerate(self._all_kinds())}
        return sorted(rows, key=lambda row: (row["kind"] != OTHER, order[row["kind"]]))

    def curve_marks(self) -> list[Row]:
        """One row a mark of the panels along alpha; a curve's end is of its own kind there."""
        rows = [self.row(c, BASE) for c in self.base]
        on_curves = [(c, curve.kind.name) for curve in self.curves for c in curve.candidates]
        rows += [self.row(c, kind) for c, kind in on_curves if not c.point.is_base]
        return rows + self.overlays(self.along_alpha())

    def overlays(self, candidates: Iterable[Candidate]) -> list[Row]:
        """Rings around tied points, then the mark of the chosen one."""
        found = tuple(candidates)
        rows = [self.row(c, TIED) for c in found if c.is_tied]
        return rows + [self.row(c, CHOSEN) for c in found if c is self.chosen]

    def row(self, candidate: Candidate, kind: str) -> Row:
        """A mark with all that its tooltip says."""
        point, axes = candidate.point, self.selection.axes
        scores = {
            f"score_{i}": wording.score(candidate.scores[objective.name], objective)
            for i, objective in enumerate(self.selection.objectives)
            if objective.name in candidate.scores
        }
        return {
            "kind": kind,
            "target": candidate.target,
            "general": candidate.general,
            "alpha": point.alpha,
            "is_feasible": candidate.is_feasible,
            "step": "base" if point.is_base else str(point.step),
            "alpha_text": f"{point.alpha:g}",
            "profile": point.profile,
            "origin": candidate.origin,
            "target_text": wording.with_unit(candidate.target, axes["target"].unit),
            "general_text": wording.with_unit(candidate.general, axes["general"].unit),
            "utility_text": wording.with_unit(candidate.utility, "points"),
            "marks": ", ".join(wording.marks(self.selection, candidate)) or wording.NO_NUMBER,
            **scores,
        }

    def tooltip(self) -> list[tuple[str, str]]:
        """Field and title of each line of a tooltip."""
        names = {r: [o.name for o in self.selection.objectives if o.role == r] for r in ROLES}
        fields = [("step", "step"), ("alpha_text", "alpha"), ("profile", "profile")]
        fields += [
            (f"{role}_text", f"{role} ({', '.join(found) if len(found) == 1 else 'mean'})")
            for role, found in names.items()
        ]
        fields += [
            (f"score_{i}", objective.name)
            for i, objective in enumerate(self.selection.objectives)
            if len(names[objective.role]) > 1
        ]
        return [*fields, ("utility_text", "utility"), ("origin", "origin"), ("marks", "marks")]

    def domain(self, role: Role, candidates: Sequence[Candidate] | None = None) -> list[float]:
        """Lowest and highest value an axis shows: all points, or those given, with some room."""
        values = [_value(c, role) for c in (self.candidates if candidates is None else candidates)]
        if candidates is None and self.reading is not None:
            reading: Interval = getattr(self.reading, role)
            values += [reading.low, reading.high]
        return padded(values)

    def is_reversed(self, role: Role) -> bool:
        """Whether the scale runs backwards so that better is right, or up."""
        return self.selection.axes[role].direction == "minimize"

    def ends(
        self, role: Role, candidates: Sequence[Candidate] | None = None
    ) -> tuple[float, float]:
        """Value at an axis's worse end (left, bottom) and at its better one."""
        low, high = self.domain(role, candidates)
        return (high, low) if self.is_reversed(role) else (low, high)

    def along_alpha(self) -> tuple[Candidate, ...]:
        """Points the panels along alpha show: each curve's, and the choice, each once."""
        found = [c for curve in self.curves for c in curve.candidates]
        if self.chosen is not None:
            found.append(self.chosen)
        return tuple(c for i, c in enumerate(found) if c not in found[:i])

    def names(self, candidates: Iterable[Candidate], *, is_short: bool = False) -> list[Name]:
        """Names of the choice, the base and the final; one text where two are one point."""
        said = [(c, wording.marks(self.selection, c)) for c in candidates]
        words = [(c, [m for m in marks if m in (CHOSEN, BASE, FINAL)]) for c, marks in said]
        found = [
            Name(c, self._name_text(c, w, is_short=is_short), is_needed=True)
            for c, w in words
            if w
        ]
        return sorted(found, key=lambda name: name.candidate is not self.chosen)

    def waymarks(self) -> list[Name]:
        """Steps along the training path and alphas along the last step's curve."""
        on_curve = [c for c in self.curves[0].candidates if 0 < c.point.alpha != 1]
        texts = [(c, f"step {c.point.step}") for c in self.training]
        texts += [(c, f"alpha {c.point.alpha:g}") for c in on_curve]
        named = [name.candidate for name in self.names(self.candidates)]
        return [Name(c, text, is_needed=False) for c, text in texts if c not in named]

    def _name_text(self, candidate: Candidate, words: Sequence[str], *, is_short: bool) -> str:
        is_plain = is_short or candidate is not self.chosen or len(words) > 1
        return " = ".join(words) if is_plain else f"chosen: {candidate.point}"

    @property
    def reading_name(self) -> str:
        return f"chosen on report items, {self.selection.level:.0%}"

    def _reading_row(self, chosen: Candidate, reading: ReportRow) -> Row:
        axes = self.selection.axes
        on_report = chosen.model_copy(update={"scores": reading.scores, "origin": "report"})
        return self.row(on_report, self.reading_name) | {
            "target": reading.target.estimate,
            "general": reading.general.estimate,
            "target_text": wording.interval(reading.target, axes["target"].unit),
            "general_text": wording.interval(reading.general, axes["general"].unit),
            "utility_text": wording.interval(reading.utility, "points"),
        }

    def _all_kinds(self) -> tuple[Kind, ...]:
        return (
            Kind(BASE, "#6f7782", "square", 130),
            Kind(TRAINING, TRAINING_COLOUR, DISC, 78),
            *(curve.kind for curve in self.curves),
            Kind(OTHER, FRONT_COLOUR, "cross", 48),
            Kind(FRONT, FRONT_COLOUR, DASHES, 60),
            Kind(TIED, TIED_COLOUR, RING, 210),
            Kind(self.reading_name, CHOSEN_COLOUR, PLUS, 110),
            Kind(CHOSEN, CHOSEN_COLOUR, STAR, 460),
        )

    def _kind_of(self, candidate: Candidate) -> str:
        if candidate.point.is_base:
            return BASE
        if candidate in self.training:
            return TRAINING
        found = (curve.kind.name for curve in self.curves if candidate in curve.candidates)
        return next(found, OTHER)

    def _curves(self) -> tuple[Curve, ...]:
        final, chosen = self.selection.final, self.selection.chosen
        curves = [self._curve(final.step, final.profile, FINAL_COLOUR, "triangle-up")]
        if not chosen.is_base and (chosen.step, chosen.profile) != (final.step, final.profile):
            other = self._curve(chosen.step, chosen.profile, OTHER_CURVE_COLOUR, "diamond")
            num_alphas = sum(not c.point.is_base for c in other.candidates)
            curves += [other] if num_alphas >= MIN_ALPHAS else []
        return tuple(curves)

    def _curve(self, step: int, profile: str, colour: str, shape: str) -> Curve:
        found = [c for c in self.candidates if c.point.step == step and c.point.profile == profile]
        name = f"alpha path to step {step}" + ("" if profile == "uniform" else f", {profile}")
        path = (*self.base, *sorted(found, key=lambda c: c.point.alpha))
        return Curve(Kind(name, colour, shape, 78), path)


def padded(values: Sequence[float]) -> list[float]:
    """Lowest and highest value with some room beyond, never of no width."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = PADDING * (high - low) or max(0.01 * abs(high), 1e-6)
    return [low - room, high + room]


def _value(candidate: Candidate, role: Role) -> float:
    return candidate.target if role == "target" else candidate.general


def _is_finite(interval: Interval) -> bool:
    return all(map(math.isfinite, (interval.estimate, interval.low, interval.high)))
