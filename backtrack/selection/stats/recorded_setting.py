"""Find the setting under which requested objectives were measured, from measurements alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.selection.stats.items import items_digest
from backtrack.selection.stats.table import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.point import Point
    from backtrack.records import Measurement, Role, Split


@dataclass(frozen=True)
class RequestedObjective:
    """What is known of an objective before it is built.

    Attributes:
        name: Name of the objective.
        role: Its role now, whatever it was when the objective was measured.
        weight: Its weight within the role now.
        fingerprint: Digest of the objective; None, which matches any, if not known.
    """

    name: str
    role: Role
    weight: float
    fingerprint: str | None = None


def recorded_setting(
    measurements: Sequence[Measurement],
    split: Split,
    requested: Sequence[RequestedObjective],
    *,
    ends: Sequence[Point],
    forms: Mapping[str, str],
    items: Mapping[str, tuple[str, ...]],
) -> Setting | None:
    """Find the latest recorded setting with every requested objective measured at both ends.

    Assumes that recorded objectives of the requested names are the requested ones.

    Args:
        measurements: All measurements, in the order of measuring.
        split: Which of the items: `selection` or `report`.
        requested: The requested objectives.
        ends: Base and final checkpoint.
        forms: Required `form` and `curve`, if known.
        items: Sets of items by their digests, for measurements of some of their items.
    """
    fitting = [
        m
        for m in measurements
        if m.split == split and all(getattr(m, key) == value for key, value in forms.items())
    ]
    pairs = dict.fromkeys((m.form, m.curve) for m in reversed(fitting))
    for pair in pairs:
        of_pair = [m for m in fitting if (m.form, m.curve) == pair]
        latest = [_latest(of_pair, objective, ends, items) for objective in requested]
        found = [m for m in latest if m is not None]
        if len(found) == len(requested):
            return _make_setting(found, requested)
    return None


def _latest(
    measurements: Sequence[Measurement],
    requested: RequestedObjective,
    ends: Sequence[Point],
    items: Mapping[str, tuple[str, ...]],
) -> tuple[Measurement, tuple[str, ...]] | None:
    """Return a measurement and all items of the latest set that both ends have items of."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        same = requested.fingerprint in (None, m.objective.fingerprint)
        if m.objective.name == requested.name and same and m.point.canonical in ends:
            key = m.objective.fingerprint, m.whole or items_digest(m.item_ids)
            groups[key] = [*groups.pop(key, []), m]
    for (_, whole), group in reversed(groups.items()):
        known = {i for m in group for i in m.item_ids}
        all_items = items.get(whole) or (tuple(known) if items_digest(known) == whole else None)
        if all_items and set(ends) <= {m.point.canonical for m in group}:
            return group[-1], all_items
    return None


def _make_setting(
    found: Sequence[tuple[Measurement, tuple[str, ...]]], requested: Sequence[RequestedObjective]
) -> Setting:
    first = found[0][0]
    objectives = tuple(
        m.objective.model_copy(update={"role": objective.role, "weight": objective.weight})
        for (m, _), objective in zip(found, requested, strict=True)
    )
    return Setting(
        split=first.split,
        form=first.form,
        curve=first.curve,
        objectives=objectives,
        item_ids={m.objective.name: tuple(sorted(items)) for m, items in found},
    )
