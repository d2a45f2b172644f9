"""An objective: one number from a model, item by item.

Promised: an objective never sees a point, and its items, prompts, seeds and batch size are the
same at every call, so scores at two points are paired item by item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import ObjectiveInfo


class Objective(Protocol):
    """One number from a model.

    Attributes:
        info: What the number is; its fingerprint covers all that decides a score but the weights.
        item_ids: Every item, `stratum/item`, in a fixed order.
    """

    info: ObjectiveInfo
    item_ids: tuple[str, ...]

    def measure(self, model: Any, tokenizer: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        """One score an item, in the order of `item_ids`, in the unit of `info`.

        Raises:
            ObjectiveError: The items cannot be scored, or a score is not finite.
        """
        ...


@runtime_checkable
class Readable(Protocol):
    """An objective whose items can be read, so that they can be looked for in training data."""

    def texts(self) -> tuple[str, ...]:
        """What each item asks or says, without a chat template, in the order of `item_ids`."""
        ...
