"""The record of a setting: all that decides scores, except the point and its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from backtrack.records.measurement import ObjectiveInfo
from backtrack.records.record import CurveName, Form, Record, Split, short_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

BatchSize = Literal["auto"] | Annotated[int, Field(ge=1)]
"""Sequences at a time; `auto` for what fits the memory."""


class Setting(Record):
    """All that decides scores, except the point and its checkpoint; a line of `settings.jsonl`.

    It is written when objectives are built. A measurement names the digest that its objective has
    here, so an objective that two settings share keeps its scores.

    Attributes:
        request: Digest of what the recipe asks to be measured, by which the setting is found again
            before anything is built.
        asked: Form and curve as the recipe asks for them, `auto` among them.
        base: Digest of the base's weights, dtype and quantization, and of the checkpoint's own
            files besides weights.
        form: Backend that holds the model at its points.
        curve: How weights move with alpha.
        engine: What of the engine decides its scores.
        objectives: The objectives, with fingerprints.
        items: Ids of all items by split and objective's name, sorted.
        clusters: First item of each item's cluster, by item, of the objectives whose items share
            something, by name.
        shared_fields: Field whose long text several items share though the recipe names no
            cluster, by objective's name.
        seed: Seed of the split.
        batch_size: Sequences at a time. Like the versions and unlike all above it moves
            scores by rounding only, and is no part of a digest.
        versions: Versions of what computes scores, by library.
        created: Time of creation, ISO 8601 in UTC.
    """

    request: str
    asked: tuple[str, str]
    base: str
    form: Form
    curve: CurveName
    engine: dict[str, Any]
    objectives: tuple[ObjectiveInfo, ...]
    items: dict[Split, dict[str, tuple[str, ...]]]
    clusters: dict[str, dict[str, str]] = Field(default_factory=dict)
    shared_fields: dict[str, str] = Field(default_factory=dict)
    seed: int
    batch_size: BatchSize
    versions: dict[str, str] = Field(default_factory=dict)
    created: str

    @property
    def digests(self) -> dict[str, str]:
        """What measurements name this setting by, for each objective's name."""
        shared = self.base, self.form, self.curve, self.engine
        return {o.name: setting_digest(*shared, o.fingerprint) for o in self.objectives}


def setting_digest(
    base: str, form: Form, curve: CurveName, engine: Mapping[str, Any], fingerprint: str
) -> str:
    """What measurements of one objective name their setting by.

    Args:
        base: Digest of the base.
        form: Backend that holds the model.
        curve: How weights move with alpha.
        engine: What of the engine decides its scores.
        fingerprint: The objective's.
    """
    return short_digest(base, form, curve, dict(engine), fingerprint)
