"""Profiles: multipliers of a point's alpha, layer by layer. Pure functions of numbers.

    uniform                    1 everywhere
    depth(FIRST,LAST)          from FIRST in the first block to LAST in the last, linear in depth
                               (after LiNeS, arXiv 2410.17146)
    blocks(EARLY,MIDDLE,LATE)  one for each third of the blocks
    modules(ATTENTION,MLP)     one for attention, one for the MLP
    safe                       PEFT-Arena's SafeScale (arXiv 2605.28819)
    level                      the same, and blocks that move less are raised as well
    min                        PEFT-Arena's MinScale

For the paper's two, let s(b) be the STRENGTH of block b at alpha 1:

    rotations         s(b) = sqrt(sum of g^2 / number of g), over all numbers g of the block's
                      generators (or angles): how far it turns
    everything else   s(b) = sqrt(sum of ||dW||_F^2 / sum of ||W0||_F^2), over the block's
                      weights: size of the delta relative to the base

`level` scales the generator or the delta of block b by c(b) = S / s(b), with S the mean of s over
the first five blocks; `safe` by 1 where that is more; `min` uses S = the smallest s(b). Since a
generator follows the root of alpha, its multiplier is c(b)^2; a delta's is c(b). A block that does
not move keeps multiplier 1.

Tensors outside the blocks (embeddings, last norm, head) take the multiplier of the nearest block
under `depth` and `blocks`, the mean of both values under `modules`, and 1 under `safe`, `level`
and `min`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, assert_never, get_args

from backtrack.errors import PointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backtrack.path.curves import Law

Key = TypeVar("Key")
ByStrength = Literal["safe", "level", "min"]
Kind = Literal["uniform", "depth", "blocks", "modules"] | ByStrength
Part = Literal["attention", "mlp", "other"]

NUM_VALUES: dict[Kind, int] = {
    "uniform": 0, "depth": 2, "blocks": 3, "modules": 2, "safe": 0, "level": 0,
    "min": 0,
}  # fmt: skip
FIRST_BLOCKS = 5
"""Number of first blocks whose mean strength `level` scales every block to."""
BY_STRENGTH: tuple[ByStrength, ...] = get_args(ByStrength)
"""Profiles that scale each block by how far it moves."""

_SPELLING = re.compile(r"^([a-z]+)(?:\(([^()]*)\))?$")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer|decoder_layers)\.(\d+)(?:\.|$)")
_ATTENTION = re.compile(r"att(?:n|ention)")
_MLP = re.compile(r"mlp|ffn|feed_forward|expert|moe")


@dataclass(frozen=True)
class Profile:
    """A profile's name and its multipliers."""

    kind: Kind
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{value:g}" for value in self.values)
        return f"{self.kind}({inside})" if self.values else self.kind


class Strength(NamedTuple):
    """How far a module moves at alpha 1: a sum of squares, and the size it is divided by."""

    moved: float
    size: float


def parse(text: str) -> Profile:
    """Parse a profile.

    Raises:
        PointError: There is no such profile, or the number of its multipliers is wrong, or one of
            them is negative or not finite.
    """
    match = _SPELLING.match(text)
    kind = match.group(1) if match else text
    if match is None or kind not in NUM_VALUES:
        raise PointError(f"there is no profile {text!r}. There are: {', '.join(_SPELLINGS)}.")
    try:
        values = tuple(float(v) for v in match.group(2).split(",")) if match.group(2) else ()
    except ValueError:
        values = (math.nan,)
    is_sound = all(math.isfinite(value) and value >= 0 for value in values)
    if len(values) != NUM_VALUES[kind] or not is_sound:
        raise PointError(
            f"profile {text!r}: {kind} takes {NUM_VALUES[kind] or 'no'} multipliers, each 0 or "
            f"more, as in {_SPELLINGS[list(NUM_VALUES).index(kind)]}."
        )
    return Profile(kind, values)


_SPELLINGS = (
    "uniform", "depth(0.5,1)", "blocks(0.3,0.6,1)", "modules(1,0.5)", "safe", "level",
    "min",
)  # fmt: skip


def parse_known(profile: str) -> Profile | None:
    """Parse a profile; None if there is no such profile."""
    try:
        return parse(profile)
    except PointError:
        return None


def block_of(module: str) -> int | None:
    """Index of the block that contains a module; None if it is outside the blocks."""
    match = _BLOCK.search(module)
    return int(match.group(1)) if match else None


def part_of(module: str) -> Part:
    """Whether a module belongs to attention, to the MLP or to neither."""
    match = _BLOCK.search(module)
    inside = module[match.end() :] if match else ""
    if _ATTENTION.search(inside):
        return "attention"
    return "mlp" if _MLP.search(inside) else "other"


def multipliers(
    profile: Profile,
    modules: Sequence[str],
    strengths: Mapping[str, Strength],
    law: Law,
) -> dict[str, float]:
    """The multiplier of each module's alpha.

    Args:
        profile: The profile.
        modules: Paths of all modules that move, in the model's order.
        strengths: Strength of each module at alpha 1; read by profiles of `BY_STRENGTH` only.
        law: How the modules' tensors follow alpha.
    """
    blocks = [block_of(module) for module in modules]
    inside = [b for b in blocks if b is not None]
    if not inside:
        return dict.fromkeys(modules, 1.0)
    count, first = max(inside) + 1, blocks.index(inside[0])
    nearest = [
        b if b is not None else (0 if i < first else count - 1) for i, b in enumerate(blocks)
    ]
    match profile.kind:
        case "uniform":
            return dict.fromkeys(modules, 1.0)
        case "depth":
            start, end = profile.values
            depths = [b / (count - 1) if count > 1 else 1.0 for b in nearest]
            return {m: start + (end - start) * d for m, d in zip(modules, depths, strict=True)}
        case "blocks":
            return {
                m: profile.values[3 * b // count] for m, b in zip(modules, nearest, strict=True)
            }
        case "modules":
            return {m: _by_part(profile.values, part_of(m)) for m in modules}
        case "safe" | "level" | "min":
            scales = _scales(profile.kind, block_strengths(strengths), law)
            return {m: scales.get(b, 1.0) for m, b in zip(modules, blocks, strict=True)}
        case _:
            assert_never(profile.kind)


def _by_part(values: tuple[float, ...], part: Part) -> float:
    attention, mlp = values
    match part:
        case "attention":
            return attention
        case "mlp":
            return mlp
        case "other":
            return (attention + mlp) / 2


def block_strengths(strengths: Mapping[str, Strength]) -> dict[int, float]:
    """Strength of each block, by ascending index; the formula is in the module's docstring."""
    blocks = ((block_of(module), strength) for module, strength in strengths.items())
    sums = summed((block, strength) for block, strength in blocks if block is not None)
    return {b: math.sqrt(s.moved / s.size) if s.size else 0.0 for b, s in sorted(sums.items())}


def summed(strengths: Iterable[tuple[Key, Strength]]) -> dict[Key, Strength]:
    """The strengths of each key as one: both of their numbers are sums over weights."""
    sums: dict[Key, Strength] = {}
    for key, (moved, size) in strengths:
        old = sums.get(key, Strength(0.0, 0.0))
        sums[key] = Strength(old.moved + moved, old.size + size)
    return sums


def _scales(kind: ByStrength, strengths: Mapping[int, float], law: Law) -> dict[int | None, float]:
    moving = {block: s for block, s in strengths.items() if s > 0}
    if not moving:
        return {}
    early = list(moving.values())[:FIRST_BLOCKS]
    goal = min(moving.values()) if kind == "min" else sum(early) / len(early)
    power = 1 if law == "linear" else 2
    most = 1.0 if kind == "safe" else math.inf
    return {block: min(goal / s, most) ** power for block, s in moving.items()}
