"""A model that another process runs: it is asked, never called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.forward import Greedy, Scored
    from backtrack.recipe import SamplingSection


class Served(ABC):
    """What objectives ask of an engine's model, as `forward` asks it of one in this process.

    Attributes:
        generation_config: The model's own; says which tokens end a text.
        context_tokens: Tokens that can be read and scored at once.
        num_tokens: Tokens read and written so far.
    """

    generation_config: Any
    context_tokens: int
    num_tokens: int

    @abstractmethod
    def losses(self, sequences: Sequence[Scored]) -> list[float]:
        """Summed negative log-likelihood of each sequence's scored tokens, in nats."""

    @abstractmethod
    def complete(
        self,
        prompts: Sequence[list[int]],
        ends: Greedy,
        ending: Sequence[int],
        sampling: SamplingSection | None,
    ) -> list[list[tuple[int, ...]]]:
        """New tokens after each prompt: one greedy completion, or several sampled ones.

        Args:
            prompts: Token ids.
            ends: How long a completion is, and which texts end it.
            ending: Tokens that end it.
            sampling: How to sample; none is greedy.
        """
