"""Records of what a model said: the questions of an objective, and answers at one point."""

from __future__ import annotations

from backtrack.point import Point
from backtrack.records.record import Record


class Question(Record):
    """What an item asks.

    Attributes:
        prompt: Its text, without examples and without a chat template; the start of it if long.
        gold: The right answer; empty where there is none.
        choices: The answers to choose from; empty where the model writes its own.
    """

    prompt: str
    gold: str = ""
    choices: tuple[str, ...] = ()


class Answer(Record):
    """What a model said to one item.

    Attributes:
        texts: Its completions, several if they were sampled; the start of each if long.
        likelihoods: Log-likelihood of each choice, or of the scored text, in nats.
    """

    texts: tuple[str, ...] = ()
    likelihoods: tuple[float, ...] = ()

    @property
    def choice(self) -> int | None:
        """Index of the likeliest of several choices, the first of equals."""
        if len(self.likelihoods) < 2:
            return None
        return self.likelihoods.index(max(self.likelihoods))


class ComparedItem(Record):
    """One item at several points.

    Attributes:
        item: Its id.
        question: What it asks; None if that was not kept.
        scores: Its score at each point, in the objective's unit.
        answers: What the model said at each point; None where that was not kept.
    """

    item: str
    question: Question | None
    scores: tuple[float, ...]
    answers: tuple[Answer | None, ...]


class ComparedObjective(Record):
    """The items of one objective that two points score differently.

    Attributes:
        objective: Its name.
        role: Its role.
        unit: Unit of its scores.
        split: Which items were compared.
        num_items: Number of items compared.
        means: Mean score at each point, in the unit.
        change: What an item gains from the first point to the second on average, in points.
        num_lost: Number of items that the second point scores worse than the first.
        num_won: Number of items that it scores better.
        num_both_wrong: Number of items on which both have no points; 0 for losses, which have no
            worst score.
        lost: Items that it scores worse, the largest loss first; some of them if a limit was set.
        won: Items that it scores better, the largest gain first, likewise.
        both_wrong: Items on which both have no points, likewise.
    """

    objective: str
    role: str
    unit: str
    split: str
    num_items: int
    means: tuple[float, ...]
    change: float
    num_lost: int
    num_won: int
    num_both_wrong: int
    lost: tuple[ComparedItem, ...]
    won: tuple[ComparedItem, ...]
    both_wrong: tuple[ComparedItem, ...]


class Comparison(Record):
    """What two points and those beside them answer differently.

    Attributes:
        points: The points; items are won and lost by the second against the first.
        objectives: The objectives, that which lost most first.
    """

    points: tuple[Point, ...]
    objectives: tuple[ComparedObjective, ...]
