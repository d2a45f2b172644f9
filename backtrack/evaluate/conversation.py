"""A conversation with a model in this process, turn by turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from backtrack.errors import ObjectiveError
from backtrack.evaluate.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.language_model import CompletionLimits, Sampling
    from backtrack.evaluate.torch_model import TorchModel


class Conversation:
    """What was said so far, and how the next turn is answered.

    With a chat template, turns are put through it. Without one, a model continues the plain text:
    each turn on a line of its own, followed by its answer.
    """

    def __init__(
        self,
        model: TorchModel,
        limits: CompletionLimits,
        sampling: Sampling | None = None,
        system: str = "",
        turns: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Begin where earlier turns ended.

        Args:
            model: Answers; its weights may change between turns.
            limits: Where an answer ends.
            sampling: How answers are sampled; None for greedy ones.
            system: A system prompt; empty for none.
            turns: What was said before, each turn with its answer.
        """
        self._model, self._limits, self._sampling, self._system = model, limits, sampling, system
        self._turns = list(turns)

    def copy(self) -> Self:
        """Another conversation in which the same was said so far."""
        return type(self)(self._model, self._limits, self._sampling, self._system, self._turns)

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self._turns.clear()

    def ask(self, text: str, on_text: Callable[[str], None]) -> str:
        """Answer a turn; it and its answer are remembered once the answer is whole.

        Args:
            text: What the user says.
            on_text: Called with each piece of the answer while it is written.

        Raises:
            ObjectiveError: The chat template refuses the turns, or there is nothing to read.
        """
        prompt = self._prompt(text)
        if not prompt:
            raise ObjectiveError("there is nothing to answer: the prompt has no token.")
        answer = self._model.stream(prompt, self._limits, on_text, self._sampling)
        self._turns.append((text, answer))
        return answer

    def _prompt(self, text: str) -> list[int]:
        tokenizer = self._model.tokenizer
        if tokenizer.chat_template is None:
            before = [f"{asked}{answer}" for asked, answer in self._turns]
            lines = [*([self._system] if self._system else []), *before, text]
            return encode(tokenizer, "\n".join(lines))
        return encode(tokenizer, self._templated(text), is_templated=True)

    def _templated(self, text: str) -> str:
        from jinja2 import TemplateError

        said = [("system", self._system)] if self._system else []
        for asked, answer in self._turns:
            said += [("user", asked), ("assistant", answer)]
        turns = [{"role": role, "content": each} for role, each in [*said, ("user", text)]]
        try:
            templated: str = self._model.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            hint = " Does it take a system prompt? Leave out --system." if self._system else ""
            raise ObjectiveError(
                f"the run's chat template does not render this conversation: {error}.{hint}"
            ) from error
        return templated
