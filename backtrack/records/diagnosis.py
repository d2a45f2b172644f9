"""The records of `backtrack diagnose`: geometry of an update and of the activations it changes.

    diagnosis.jsonl   one `ModuleGeometry` per line: one module at one point; of two lines with the
                      same point, module and setting the later one counts
    diagnosis.json    one `Diagnosis`: what was diagnosed and how, and the correlation of each
                      metric with measured forgetting

Notation: W0 is a module's base weight, [out, in], W its weight at the point, dW = W - W0; h0 are
the module's inputs in the base, one row for each token of the prompts; X0 and X1 are its outputs
in the base and at the point. Formulas: PEFT-Arena (arXiv 2605.28819), as stated in
`backtrack.diagnose`.
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
SPECTRAL = (
    "effective_rank", "retention_fluctuation", "adaptation_fluctuation",
    "stable_rank", "retention_deviation", "adaptation_deviation",
)  # fmt: skip
"""Fields of a spectrum with one number for each module."""


class Spectrum(Record):
    """An update in the singular directions of its base weight.

    Attributes:
        mode: Whether all directions were computed, or the leading ones by random projection.
        error: Largest ||W0 v_i - s_i u_i|| divided by the largest singular value, which bounds the
            error of every s_i in that unit; 0 for `exact`.
        directions: Singular directions of W0 in the profiles below, ascending from 1, the
            strongest.
        retention: |u_i^T W v_i - s_i| / sum(s), one number for each direction.
        adaptation: ||dW v_i|| / max(s), one number for each direction.
        retention_fluctuation: How spiky the retention profile is, over all computed directions:
            the mean distance between neighbours, in decades; 0 is smooth.
        adaptation_fluctuation: How spiky the adaptation profile is, in decades.
        effective_rank: Exponential of the entropy of dW's singular values divided by their sum; 0
            if dW is 0.
        effective_rank_low: Lower bound of the effective rank; equal to it if exact.
        effective_rank_high: Upper bound of the effective rank; equal to it if exact.
        stable_rank: ||dW||_F^2 over its largest singular value squared, which PEFT-Arena's release
            calls effective rank; 0 if dW is 0, None in lines of older versions, as the next two.
        retention_deviation: Mean distance of |u_i^T W v_i - s_i| from its moving average over five
            directions, over all computed directions; the release's fluctuation.
        adaptation_deviation: Likewise of ||dW v_i||.
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
    stable_rank: float | None = None
    retention_deviation: float | None = None
    adaptation_deviation: float | None = None


class Drift(Record):
    """Capability-conditioned drift of one module on one role's prompts; E is the mean over tokens.

    Attributes:
        absolute: E||dW h0||^2.
        relative: E||dW h0||^2 / E||W0 h0||^2.
        update_normed: E||dW h0||^2 / (||dW||_F^2 E||h0||^2), from 0 to 1: share of the largest
            drift that an update of this norm can cause.
        num_tokens: Number of tokens.
    """

    absolute: float
    relative: float
    update_normed: float
    num_tokens: int


class ActivationGeometry(Record):
    """How a module's outputs at a point differ from the base's, on one role's prompts.

    A rotation of all outputs does not change the first three metrics and `norm_drift`, but changes
    `cosine_drift` and `subspace_distance`.

    Attributes:
        procrustes: min over orthogonal R of ||X1 R - X0||_F / ||X0||_F.
        gram: ||Z1 Z1^T - Z0 Z0^T||_F / ||Z0 Z0^T||_F; Z are the outputs with rows of unit norm.
        cka: Linear centred kernel alignment; 1 for the same geometry.
        cosine_drift: 1 minus the mean cosine between a token's two outputs.
        norm_drift: Mean absolute relative change of a token's norm.
        subspace_distance: Distance between the leading principal subspaces, from 0 to 1:
            sqrt(1 - ||V0^T V1||_F^2 / dimension).
        dimension: Dimension of the two subspaces.
        num_tokens: Number of tokens.
        procrustes_centred: Procrustes residual of centred outputs, which PEFT-Arena's release
            computes; None in lines of older versions, as those below.
        log_norm_drift: Mean of |log(norm at the point / norm in the base)|; the release's.
        subspace_distance_32: Distance of principal subspaces of 32 dimensions; the release's, by
            exact directions.
        subspace_distance_64: Likewise of 64.
    """

    procrustes: float
    gram: float
    cka: float
    cosine_drift: float
    norm_drift: float
    subspace_distance: float
    dimension: int
    num_tokens: int
    procrustes_centred: float | None = None
    log_norm_drift: float | None = None
    subspace_distance_32: float | None = None
    subspace_distance_64: float | None = None


class ModuleGeometry(Record):
    """One linear module at one point; a line of `diagnosis.jsonl`.

    Attributes:
        point: The point, in canonical form.
        form: Form of the placed model.
        curve: Curve of the path.
        module: The module's path in the plain model.
        block: Index of its block of layers; None outside the blocks.
        part: The part of the block it belongs to.
        shape: Shape of the weight: outputs, inputs.
        update_norm: ||dW||_F.
        strength: Effective strength: ||dW||_F / ||W0||_F.
        spectrum: The weight-space profiles; None if they were not asked for.
        drift: Drift by the role of the prompts.
        activations: Geometry of outputs by the role of the prompts; empty unless the module is one
            of the locations.
        setting: Digest of base, checkpoints, form, curve, prompts, mode and seed: lines of one
            setting are comparable.
        seconds: Wall time of computing the line, without placing the model and running prompts.
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
        """All metrics by name; those of prompts end in the role, as `drift.relative/general`."""
        metrics: dict[str, float | None] = {"strength": self.strength}
        if self.spectrum is not None:
            metrics |= {f"spectrum.{name}": getattr(self.spectrum, name) for name in SPECTRAL}
        for kind, by_role in (("drift", self.drift), ("activations", self.activations)):
            for role, geometry in by_role.items():
                values = geometry.model_dump(exclude={"num_tokens", "dimension"})
                metrics |= {f"{kind}.{name}/{role}": value for name, value in values.items()}
        return {name: value for name, value in metrics.items() if value is not None}


def mean_metrics(lines: Iterable[ModuleGeometry]) -> dict[str, float]:
    """Mean of each metric over the modules that have it."""
    by_name: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.metrics.items():
            by_name.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in by_name.items()}


class Correlation(Record):
    """Correlation of one metric with measured forgetting.

    Forgetting is the base's general score minus the point's, in points: more is worse. A metric of
    a point is its mean over the diagnosed modules; its divergence is of the whole model.

    Attributes:
        metric: Field of `ModuleGeometry`, such as `drift.update_normed` or `strength`, or
            `divergence`: KL(base || point) in nats a token.
        role: Role of the prompts; None for a metric of weights alone.
        over: Whether over points of one path or entrants of an arena.
        num: Number of points or entrants.
        pearson: Pearson's r, its interval by Fisher's transformation; None below four.
        spearman: Spearman's rho, its interval with Bonett and Wright's variance; None below four.
    """

    metric: str
    role: Role | None
    over: Over
    num: int
    pearson: Interval | None
    spearman: Interval | None


class PromptSource(Record):
    """Source of one role's prompts.

    Attributes:
        role: The role.
        source: Names of the objectives, or the file.
        num_prompts: Number of prompts.
        num_tokens: Number of tokens in all prompts: rows of inputs and activations.
    """

    role: Role
    source: str
    num_prompts: Annotated[int, Field(ge=1)]
    num_tokens: Annotated[int, Field(ge=1)]


class Forgetting(Record):
    """Forgetting at a point and the metrics of its geometry, for their scatter plot.

    Attributes:
        name: Name of the point or the entrant.
        point: The point.
        forgetting: The base's general score minus the point's, in points.
        metrics: Means over modules, keyed `metric` or, for metrics of prompts, `metric/role`; of
            points also `divergence/role`.
    """

    name: str
    point: Point
    forgetting: float
    metrics: dict[str, float]


class Diagnosis(Record):
    """What was diagnosed, and the correlations found: `diagnosis.json`.

    Attributes:
        run: The run's name.
        points: Points diagnosed with all metrics, in the order given.
        path: Points diagnosed along the path, by step and alpha; those not among `points` have no
            spectra.
        modules: Paths of the diagnosed linear modules, in the model's order.
        locations: Paths of the modules whose activations were compared, by location or path; by
            default attention and MLP at four depths.
        prompts: Sources of the prompts.
        mode: The requested mode of spectra; each line records its own.
        setting: Setting of this diagnosis's lines in `diagnosis.jsonl`.
        forgetting: Diagnosed points that were measured; empty if none were.
        correlations: Correlation of each metric with forgetting, over these points.
        notes: Cautions for the reader.
        seed: Seed of the random projections and of the sample of prompts.
        seconds: Wall time of the diagnosis.
        peak_bytes: Peak memory of the GPU, or of the process on a CPU; None if unknown.
        command: The command line that wrote the diagnosis.
        created: Time of writing, ISO 8601 in UTC.
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
