"""An objective: one number from a model, item by item.

Promised: an objective sees neither the point nor the kind of engine. Its items, prompts and seeds
are the same at every call, so scores at two points are paired item by item.

A new kind is a subclass of `Objective` in a module of its own, which owns the kind's items,
prompts and token estimate, and a section of the recipe that names it
(`backtrack.recipe.objectives`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from backtrack.records.answers import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.records import ObjectiveInfo


class Objective(ABC):
    """One number from a model; abstract.

    Attributes:
        info: What the number is; its fingerprint covers everything that decides a score except
            the weights and the engine.
        item_ids: Every item, `stratum/item`, in a fixed order. A stratum is drawn from in
            proportion to its size, like a task of several; what items share is in `clusters`.
        clusters: First item of each item's cluster, by item; empty where items share nothing. The
            fingerprint covers it (see `items.with_clusters`).
        lent: Objective and item that each item is taken from, by item; an item is searched or
            reported where that one is. Empty for items of its own.
        shared_field: Field whose long text several items share though `clusters` is empty, if any.
    """

    info: ObjectiveInfo
    item_ids: tuple[str, ...]
    clusters: Mapping[str, str] = MappingProxyType({})
    lent: Mapping[str, tuple[str, str]] = MappingProxyType({})
    shared_field: str | None = None

    @classmethod
    def build_all(cls, sections: Sequence[Any], tokenizer: Any) -> list[Self]:
        """Objectives of this kind, one for each section, in their order.

        Documents are read and rendered here, so most faults show before a model is loaded.

        Args:
            sections: Of the recipe, all of this kind.
            tokenizer: The model's, with its chat template.

        Raises:
            ObjectiveError: Documents, formats, task, metric or function are not as a section says.
        """
        return [cls(section, tokenizer) for section in sections]

    def __init__(self, section: Any, tokenizer: Any) -> None:  # noqa: B027  # see `build_all`
        """Build one objective; a kind that shares work between objectives has its own way."""

    @abstractmethod
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        """One score per item, in the order of `item_ids`, in the unit of `info`.

        Raises:
            ObjectiveError: An item is unknown, cannot be scored, or its score is not finite.
        """

    def texts(self) -> tuple[str, ...]:
        """What each item asks or says, without a chat template, in the order of `item_ids`.

        They are searched for in the training data, and read by the model in a diagnosis.
        Empty if the items have no text that can be read.
        """
        return ()

    def questions(self) -> tuple[Question, ...]:
        """What each item asks, for a reader; empty if the items have no text that can be read."""
        return tuple(Question(prompt=text) for text in self.texts())

    def prompts(self) -> tuple[str, ...]:
        """The texts as the model reads them, through the chat template if there is one."""
        return self.texts()

    @classmethod
    def tokens_per_item(cls, section: Any, num_tokens: Callable[[str], float]) -> float | None:  # noqa: ARG003
        """Tokens read and written for one item at most; None if documents are not at hand.

        Args:
            section: Of the recipe.
            num_tokens: Tokens of a text, counted or estimated.
        """
        return None
