"""Pair the items of two sides; refuse what cannot be compared, with the first difference. Pure.

Scores are compared item by item, so both sides must have been asked the same: the same items, the
same metric, the same prompts. How that is known differs. Our own measurements carry a fingerprint
of all that decides a score but the model. lm-eval's files carry digests of each document, prompt
and answer. Where one side has files of lm-eval's and the other is measured here, texts are
compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.formatting import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backtrack.gate.sides import ItemScores, Side
    from backtrack.records import ObjectiveInfo


@dataclass(frozen=True)
class Pair:
    """One objective on both sides.

    Attributes:
        candidate: The candidate's scores.
        incumbent: The incumbent's scores.
        item_ids: The items that are compared, in the order they are measured in.
        clusters: Cluster by item.
        ends: Number of items at each look, ascending; the last is all.
    """

    candidate: ItemScores
    incumbent: ItemScores
    item_ids: tuple[str, ...]
    clusters: Mapping[str, str]
    ends: tuple[int, ...] = ()

    @property
    def info(self) -> ObjectiveInfo:
        """The objective, as the side knows it that knows its role."""
        sides = (self.candidate, self.incumbent)
        return next((s.info for s in sides if s.info.fingerprint), self.candidate.info)

    @property
    def is_recorded(self) -> bool:
        return self.candidate.is_recorded and self.incumbent.is_recorded


def pair_up(name: str, candidate: Side, incumbent: Side) -> Pair:
    """Pair an objective of two sides.

    Raises:
        UsageError: A side has no such objective, or the two cannot be compared; the message has
            the first difference.
    """
    one, other = (_found(name, side) for side in (candidate, incumbent))
    _require_same_metric(name, one.info, other.info)
    item_ids = _shared_items(name, candidate, incumbent, (one, other))
    _require_same_questions(name, item_ids, one, other)
    return Pair(one, other, item_ids, one.clusters or other.clusters)


def _found(name: str, side: Side) -> ItemScores:
    found = side.find(name)
    if found is None:
        known = ", ".join(side.known_names) or "none"
        raise UsageError(f"{side.name} has no scores of {name!r}. It has {known}.")
    return found


def _require_same_metric(name: str, candidate: ObjectiveInfo, incumbent: ObjectiveInfo) -> None:
    is_known = candidate.fingerprint and incumbent.fingerprint
    for what in ("kind", "unit", "direction", *(("range",) if is_known else ())):
        one, other = getattr(candidate, what), getattr(incumbent, what)
        if one != other:
            raise UsageError(
                f"{name} is not the same metric on both sides: its {what} is {one!r} in the "
                f"candidate's scores and {other!r} in the incumbent's."
            )


def _shared_items(
    name: str, candidate: Side, incumbent: Side, found: tuple[ItemScores, ...]
) -> tuple[str, ...]:
    """The items of the side that has scores already, or of both, which must then be the same."""
    fixed = [side for side in found if side.is_recorded] or list(found)
    item_ids = fixed[0].item_ids
    for here, scores, there in (
        (candidate, found[0], incumbent),
        (incumbent, found[1], candidate),
    ):
        is_fixed = any(scores is side for side in fixed)
        extra = set(item_ids) - scores.possible
        extra |= set(scores.item_ids) - set(item_ids) if is_fixed else set()
        if extra:
            first = min(extra, key=_natural)
            where = there if first not in scores.possible else here
            raise UsageError(
                f"{name} was measured on different items: {first} is only in {where.name} "
                f"({len(extra)} such items). Measure both on the same."
            )
    if len(item_ids) < 2:
        raise UsageError(f"{name} has {len(item_ids)} items: an interval needs two at least.")
    return item_ids


def _natural(item_id: str) -> tuple[str, int, str]:
    stratum, _, number = item_id.rpartition("/")
    return stratum, int(number) if number.isdigit() else -1, number


def _require_same_questions(
    name: str, item_ids: Iterable[str], candidate: ItemScores, incumbent: ItemScores
) -> None:
    prints = [side.info.fingerprint for side in (candidate, incumbent)]
    if all(prints):
        if prints[0] != prints[1]:
            raise UsageError(
                f"{name} was not measured alike on both sides: documents, prompts or settings "
                f"differ{_first_text(item_ids, candidate, incumbent)}. Measure both by one recipe."
            )
        return
    ordered = sorted(item_ids, key=_natural)
    if candidate.asked and incumbent.asked:
        for item_id in ordered:
            one, other = candidate.asked.get(item_id, {}), incumbent.asked.get(item_id, {})
            differing = [what for what in one if what in other and one[what] != other[what]]
            if differing:
                raise UsageError(
                    f"{name} was not asked alike on both sides: the {' and the '.join(differing)} "
                    f"of {item_id} differ{_texts_of(item_id, candidate, incumbent)}. Measure both "
                    "with the same task, examples and chat template."
                )
        return
    if text := _first_text(ordered, candidate, incumbent):
        raise UsageError(
            f"{name} was not asked alike on both sides{text}. Few-shot examples and chat "
            "templates count too. Measure both sides with lm-eval, or both with a recipe."
        )


def _first_text(item_ids: Iterable[str], candidate: ItemScores, incumbent: ItemScores) -> str:
    """The first item whose text differs, in words; empty if none does or texts are not known."""
    one, other = candidate.texts, incumbent.texts
    for item_id in sorted(item_ids, key=_natural):
        pair = one.get(item_id), other.get(item_id)
        if None not in pair and pair[0] != pair[1]:
            return f": {item_id}{_texts_of(item_id, candidate, incumbent)}"
    return ""


def _texts_of(item_id: str, candidate: ItemScores, incumbent: ItemScores) -> str:
    """What both sides ask in an item, from a little before where they begin to differ."""
    texts = [side.texts.get(item_id) for side in (candidate, incumbent)]
    one, other = (text or "" for text in texts)
    if one == other:
        return ""
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
                min(len(one), len(other)))  # fmt: skip
    begin = max(same - 20, 0)
    return f" ({shortened(one[begin:])} and {shortened(other[begin:])})"
