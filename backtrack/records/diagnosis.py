"""What `backtrack diagnose` writes down: where an update acts, and what the representation feels.

    diagnosis.jsonl   one `ModuleGeometry` a line: one module at one point; of two lines of the
                      same point, module and setting the later counts
    diagnosis.json    one `Diagnosis`: what was looked at and how, and how the numbers go with
                      measured forgetting

Words: W0 is a module's base weight, [out, in], W its weight at the point, dW = W - W0; h0 are the
module's inputs in the base, one row a token of the prompts; X0 and X1 its outputs in the base and
at the point. Formulas: PEFT-Arena (arXiv 2605.28819), as `backtrack.diagnose` states them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from backtrack.point import Point
from backtrack.records import CurveName, Form, Interval, Record, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

Part = Literal["attention", "mlp", "other"]
Mode = Literal["exact", "randomized"]
Over = Literal["points", "entrants"]
SPECTRAL = ("effective_rank", "retention_fluctuation", "adaptation_fluctuation")
"""Numbers of a spectrum that are one a module."""


class Spectrum(Record):
    """An update in the singular directions of the weight it is added to.

    Attributes:
        mode: Whether all directions were computed, or the leading ones by random projection.
        error: Of `randomized`: the largest ||W0 v_i - s_i u_i|| over the largest singular value,
            which bounds the error of every s_i in that unit; 0 for `exact`.
        directions: Which singular directions of W0 the profiles below show, from 1 for the
            strongest, ascending.
        retention: |u_i^T W v_i - s_i| over the sum of all s, a number a direction.
        adaptation: ||dW v_i|| over the largest s, a number a direction.
        retention_fluctuation: How spiky the retention profile is, over all directions computed:
            the mean distance, in decades, between neighbours; 0 is smooth.
        adaptation_fluctuation: Likewise of the adaptation profile.
        effective_rank: Exponential of the entropy of dW's singular values over their sum; 0 where
            nothing moves.
        effective_rank_low: The least it can be; equals it where exact.
        effective_rank_high: The most it can be.
    """

    mode: Mode
    error: float = 0.0
    directions: tuple[int, ...]
    retention: tuple[float, ...]
    adaptation: tuple[float, ...]
    retention_fluctuation: float
    adaptation_fluctuation: float
    effective_rank: float
    effective_rank_low: float
    effective_rank_high: float


class Drift(Record):
    """Capability-conditioned drift of one module on one role's prompts; means over tokens.

    Attributes:
        absolute: E||dW h0||^2.
        relative: E||dW h0||^2 / E||W0 h0||^2.
        update_normed: E||dW h0||^2 / (||dW||_F^2 E||h0||^2): how much of what the update could do
            these prompts feel, from 0 to 1.
        num_tokens: Tokens read.
    """

    absolute: float
    relative: float
    update_normed: float
    num_tokens: int


class ActivationGeometry(Record):
    """How a module's outputs at a point stand to the base's, on one role's prompts.

    A rotation of all outputs leaves the first three as they are, and moves the other three.

    Attributes:
        procrustes: min over orthogonal R of ||X1 R - X0||_F / ||X0||_F.
        gram: ||Z1 Z1^T - Z0 Z0^T||_F / ||Z0 Z0^T||_F, rows of unit norm.
        cka: Linear centred kernel alignment, 1 for the same geometry.
        cosine_drift: 1 less the mean cosine of a token's two outputs.
        norm_drift: Mean relative change of a token's norm, without sign.
        subspace_distance: Share of the base's leading principal subspace that the point's leading
            subspace of the same dimension has left: sqrt(1 - ||V0^T V1||_F^2 / dimension).
        dimension: Of the two subspaces.
        num_tokens: Tokens read.
    """

    procrustes: float
    gram: float
    cka: float
    cosine_drift: float
    norm_drift: float
    subspace_distance: float
    dimension: int
    num_tokens: int


class ModuleGeometry(Record):
    """One linear module at one point; a line of `diagnosis.jsonl`.

    Attributes:
        point: Where the model stood, spelled canonically.
        form: How it stood there.
        curve: Which curve led there.
        module: The module's path in the plain model.
        block: Index of the block of layers it lies in; none outside the blocks.
        part: What it belongs to.
        shape: Of the weight: outputs, inputs.
        update_norm: ||dW||_F.
        strength: Effective strength: ||dW||_F / ||W0||_F.
        spectrum: The weight-space profiles, where they were asked for.
        drift: By the role of the prompts.
        activations: By the role of the prompts, where the module is one of the locations.
        setting: Digest of prompts, tokens read and mode: lines of one setting may be compared.
        seconds: Wall time spent on the module at this point; what serves several points is shared
            evenly.
    """

    point: Point
    form: Form
    curve: CurveName
    module: str
    block: int | None
    part: Part
    shape: tuple[int, int]
    update_norm: float
    strength: float
    spectrum: Spectrum | None = None
    drift: dict[Role, Drift] = Field(default_factory=dict)
    activations: dict[Role, ActivationGeometry] = Field(default_factory=dict)
    setting: str
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Its numbers by name; those of prompts end in their role, as `drift.relative/general`."""
        found = {"strength": self.strength}
        if self.spectrum is not None:
            found |= {f"spectrum.{name}": getattr(self.spectrum, name) for name in SPECTRAL}
        for kind, by_role in (("drift", self.drift), ("activations", self.activations)):
            for role, numbers in by_role.items():
                named = numbers.model_dump(exclude={"num_tokens", "dimension"})
                found |= {f"{kind}.{name}/{role}": value for name, value in named.items()}
        return found


def mean_metrics(lines: Iterable[ModuleGeometry]) -> dict[str, float]:
    """Each metric's mean over the modules that have it."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.metrics.items():
            found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


class Correlation(Record):
    """How one metric goes with measured forgetting.

    Forgetting is the base's general score less the point's, in points: more is worse. A metric of
    a point is its mean over the modules looked at.

    Attributes:
        metric: `drift.update_normed`, `activations.procrustes`, `strength`, ... : the field of
            `ModuleGeometry`.
        role: Of the prompts; none for a metric of weights alone.
        over: Points of one path, or entrants of an arena.
        num: How many there were.
        pearson: With the interval by Fisher's transformation; none below 4.
        spearman: Likewise with Bonett and Wright's variance.
    """

    metric: str
    role: Role | None
    over: Over
    num: int
    pearson: Interval | None
    spearman: Interval | None


class PromptSource(Record):
    """Where one role's prompts came from.

    Attributes:
        role: What they stand for.
        source: Names of the objectives, or the file.
        num_prompts: How many.
        num_tokens: Tokens in all, one row of activations each.
    """

    role: Role
    source: str
    num_prompts: Annotated[int, Field(ge=1)]
    num_tokens: Annotated[int, Field(ge=1)]


class Forgetting(Record):
    """What a point has lost, beside the metrics of its geometry, for the scatter of the two.

    Attributes:
        name: The point, or the entrant.
        point: Where.
        forgetting: The base's general score less the point's, in points.
        metrics: Mean over modules by `metric` or, where prompts have a role, `metric/role`.
    """

    name: str
    point: Point
    forgetting: float
    metrics: dict[str, float]


class Diagnosis(Record):
    """What was looked at, and what it comes to: `diagnosis.json`.

    Attributes:
        run: The run's name.
        points: Points looked at with all metrics, in the order asked for.
        path: Points looked at along the path, by step and alpha; without spectra where they are
            not among `points`.
        modules: Linear modules looked at, in the model's order.
        locations: Those of them whose activations were compared, by name: the paper's eight
            depth locations where none were asked for.
        prompts: What the model read.
        mode: How spectra were asked for; each line says how its own was computed.
        setting: That of the lines in `diagnosis.jsonl` which belong to this diagnosis.
        forgetting: Points that were measured and looked at; empty where none were measured.
        correlations: Of each metric with forgetting, over these points.
        notes: Cautions a reader should see.
        seed: Of the random projections and the choice of prompts.
        seconds: Wall time.
        peak_bytes: Most memory of the device, or of the process on a CPU; none where not known.
        command: What made this diagnosis.
        created: Time, ISO 8601 in UTC.
    """

    format_version: Literal[1] = 1
    run: str
    points: tuple[Point, ...]
    path: tuple[Point, ...] = ()
    modules: tuple[str, ...]
    locations: dict[str, str]
    prompts: tuple[PromptSource, ...]
    mode: Mode | Literal["auto"]
    setting: str
    forgetting: tuple[Forgetting, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int
    seconds: float
    peak_bytes: int | None = None
    command: str = ""
    created: str
