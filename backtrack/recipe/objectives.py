"""Objectives: what is measured, each for one role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from backtrack.recipe.engine import SamplingSection
from backtrack.recipe.expressions import Expression
from backtrack.recipe.kinds import KindSection, OfKind
from backtrack.records import BITS, FRACTION, NATS, Axis, Direction, ObjectiveInfo, Role


class ObjectiveSection(KindSection):
    """What is measured, for one role; abstract.

    A new kind is a subclass here and the class that `implementation` names, a subclass of
    `backtrack.evaluate.objectives.objective.Objective`.

    Attributes:
        calls_model: It calls the torch model itself, so the model must run in this process.
    """

    entry_point_group = "backtrack.objectives"
    calls_model: ClassVar[bool] = False

    role: Role
    """`target`: what training is for. `general`: what must not be lost."""
    name: str = ""
    """Unique; the default is the task or the file's stem."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in the role's mean, relative to the role's other objectives."""
    range: tuple[float, float] | None = None
    """The scores that count as 0 and 100 points in the utility, worst and best. A `fraction` and
    a loss in `nats a token` or `bits a byte` need none: a loss counts as the probability it
    implies. Any other unit does."""

    @model_validator(mode="after")
    def _has_scale(self) -> ObjectiveSection:
        unit, is_more = self.axis.unit, self.axis.direction == "maximize"
        if self.range is None:
            if unit != FRACTION and (unit not in (NATS, BITS) or is_more):
                raise ValueError(needs_range(unit))
        elif (self.range[1] > self.range[0]) != is_more or self.range[0] == self.range[1]:
            raise ValueError(
                f"range {list(self.range)} must run from the worst score to the best, and "
                f"{'more' if is_more else 'less'} is better"
            )
        return self

    @property
    def axis(self) -> Axis:
        """Unit and direction of its scores."""
        return Axis(unit=FRACTION, direction="maximize")

    def info(self, fingerprint: str) -> ObjectiveInfo:
        """The record of the objective.

        Args:
            fingerprint: Digest of all that decides a score except the model.
        """
        return ObjectiveInfo(
            name=self.name or self.default_name,
            role=self.role,
            kind=self.kind,
            direction=self.axis.direction,
            unit=self.axis.unit,
            range=self.range,
            weight=self.weight,
            fingerprint=fingerprint,
        )

    @property
    def default_name(self) -> str:
        """The name where none is given."""
        return self.kind

    @property
    def borrows_items(self) -> bool:
        """Whether its items are those of the recipe's other general objectives."""
        return False

    @property
    def is_benchmark(self) -> bool:
        """Whether its items are those of a public benchmark, on which others report scores."""
        return False

    @property
    def code(self) -> str | None:
        """The code outside this package that it runs, in words; None if none."""
        return None


class _DocumentsObjective(ObjectiveSection):
    """An objective over documents of a file or a data set; abstract."""

    path: str
    """A file, a folder `datasets` can load, or a Hub name."""
    subset: str | None = None
    """Configuration name of a data set that has several."""
    split: str = "test"
    """Split, with slices as in `datasets`: `test[:500]`."""
    cluster: str | None = None
    """Format or name of a field that several items share, such as a passage. Items that share it
    are drawn, resampled and counted together."""

    @property
    def default_name(self) -> str:
        """The file's stem."""
        return Path(self.path).stem

    @property
    def is_benchmark(self) -> bool:
        """Whether it is the test split of a data set by its Hub name."""
        is_file = self.path.endswith((".jsonl", ".ndjson", ".txt"))
        return "/" in self.path and self.split.startswith("test") and not is_file


class LmEvalObjective(ObjectiveSection):
    """A task, group or tag of lm-eval, scored per document by one of its metrics."""

    implementation = "backtrack.evaluate.objectives.lm_eval_task:LmEvalScores"

    kind: Literal["lm_eval"]
    task: str
    """Name of a task, a group or a tag; `*` matches many."""
    metric: str
    """A per-document metric of the task, such as `exact_match` or `acc_norm`."""
    filter: str = "none"
    """Filter of the task's outputs, such as `strict-match`."""
    direction: Direction = "maximize"
    """Whether more or less is better."""
    unit: str = FRACTION
    """`fraction` for scores between 0 and 1, `nats a token` or `bits a byte` for losses; any other
    is a label, and needs `range`."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples in the prompt; the default is the task's."""
    include_path: str | None = None
    """A folder with task files of your own."""
    apply_chat_template: bool = False
    """Put prompts through the tokenizer's chat template."""
    fewshot_as_multiturn: bool = False
    """Give few-shot examples as turns of a chat."""
    max_gen_toks: Annotated[int, Field(ge=1)] | None = None
    """New tokens at most; lm-eval's own default of 256 cuts long chains of thought."""
    cluster: str | None = None
    """Format or name of a field that several documents share, such as a passage. Documents that
    share it are drawn, resampled and counted together."""
    sampling: SamplingSection | None = None
    """For tasks that generate: the mean over sampled answers. None is as the task says, which is
    nearly always greedy."""

    @property
    def axis(self) -> Axis:
        """As the recipe says."""
        return Axis(unit=self.unit, direction=self.direction)

    @property
    def code(self) -> str | None:
        """Functions that task files name."""
        return f"functions of the tasks in {self.include_path}" if self.include_path else None

    @property
    def default_name(self) -> str:
        """The task."""
        return self.task

    @property
    def is_benchmark(self) -> bool:
        return True


class ExamplesObjective(_DocumentsObjective):
    """Prompts with known completions, from a JSONL file or a data set."""

    implementation = "backtrack.evaluate.objectives.examples:ExampleScores"

    kind: Literal["examples"]
    score: Literal["exact_match", "choice", "nll"] = "exact_match"
    """`exact_match` of a greedy completion, `choice` among `choices` by likelihood, or negative
    log-likelihood a token (`nll`) of the completion."""
    prompt: str = "{prompt}"
    """Format over the item's fields."""
    completion: str = "{completion}"
    """Format over the item's fields: the answer."""
    choices: str = "choices"
    """For `choice`: the field that lists the completions to choose from."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """For `exact_match`: new tokens at most."""
    stop: tuple[str, ...] = ("\n",)
    """For `exact_match`: a completion ends before the first of these."""
    apply_chat_template: bool = False
    """Give the prompt as a user's turn of the tokenizer's chat template."""
    sampling: SamplingSection | None = None
    """For `exact_match`: the mean over sampled completions."""

    @property
    def writes_completions(self) -> bool:
        """Whether the model writes what is scored."""
        return self.score == "exact_match"

    @property
    def axis(self) -> Axis:
        """A loss, or the share of right completions."""
        if self.score == "nll":
            return Axis(unit=NATS, direction="minimize")
        return Axis(unit=FRACTION, direction="maximize")

    @model_validator(mode="after")
    def _sampled_completions(self) -> ExamplesObjective:
        if self.sampling is not None and not self.writes_completions:
            raise ValueError(f"`{self.score}` writes no completion, so there is none to sample")
        return self


class RefusalObjective(_DocumentsObjective):
    """Prompts that a model answers or refuses: the share of its completions that are refusals."""

    implementation = "backtrack.evaluate.objectives.examples:RefusalScores"

    kind: Literal["refusal"]
    patterns: Annotated[tuple[Expression, ...], Field(min_length=1)]
    """Regular expressions; a completion in which one is found is a refusal: `(?i)\\bI can(no|')t`.
    """
    direction: Direction = "maximize"
    """`maximize` for prompts that are to be refused, `minimize` for harmless ones."""
    prompt: str = "{prompt}"
    """Format over the item's fields."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """New tokens at most."""
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these."""
    apply_chat_template: bool = False
    """Give the prompt as a user's turn of the tokenizer's chat template."""
    sampling: SamplingSection | None = None
    """The mean over sampled completions; None is greedy."""

    @property
    def writes_completions(self) -> bool:
        """Whether the model writes what is scored."""
        return True

    @property
    def axis(self) -> Axis:
        """A share of completions."""
        return Axis(unit=FRACTION, direction=self.direction)


class PreferenceObjective(_DocumentsObjective):
    """Pairs of answers of which one was preferred, in TRL's format: texts, or turns of a chat."""

    implementation = "backtrack.evaluate.objectives.preference:PreferenceScores"

    kind: Literal["preference"]
    score: Literal["accuracy", "margin"] = "accuracy"
    """`accuracy`: whether the chosen answer is the likelier; `margin`: its log-likelihood less
    that of the rejected one, in nats, which needs `range`."""
    prompt: str = "{prompt}"
    """Format over the item's fields. Without a field `prompt`, what both answers begin with."""
    chosen: str = "{chosen}"
    """Format over the item's fields: the preferred answer."""
    rejected: str = "{rejected}"
    """Format over the item's fields: the other answer."""
    apply_chat_template: bool = False
    """Give the prompt as a user's turn of the tokenizer's chat template; turns always are."""

    @property
    def axis(self) -> Axis:
        """A share of pairs, or a difference of log-likelihoods."""
        unit = FRACTION if self.score == "accuracy" else "nats an answer"
        return Axis(unit=unit, direction="maximize")


class TextObjective(_DocumentsObjective):
    """Bits per byte of running text; an item is one window of it."""

    implementation = "backtrack.evaluate.objectives.text:BitsPerByte"

    kind: Literal["text"]
    field: str = "text"
    """Format or name of the field that holds the text."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For a text file: where to begin, as a share of its length."""
    window_tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens an item."""
    max_items: Annotated[int, Field(ge=1)] = 1000
    """Windows at most, evenly spaced."""

    @property
    def axis(self) -> Axis:
        """A loss."""
        return Axis(unit=BITS, direction="minimize")


class DivergenceObjective(ObjectiveSection):
    """How far the model's next-token probabilities are from the base's on prompts; no labels."""

    implementation = "backtrack.evaluate.objectives.divergence:DivergenceFromBase"
    calls_model = True

    kind: Literal["divergence"]
    role: Role = "general"
    """`general`: at the base it is 0, so it is no target."""
    path: str | None = None
    """A text file with a prompt a line, a JSONL file, a folder `datasets` can load, or a Hub name;
    by default the prompts of the recipe's other general objectives are read."""
    subset: str | None = None
    """Configuration name of a data set that has several."""
    split: str = "test"
    """Split, with slices as in `datasets`: `test[:500]`."""
    prompt: str = "prompt"
    """Format or name of the field that holds the prompt."""
    apply_chat_template: bool = False
    """Give the prompt as a user's turn of the tokenizer's chat template; prompts of other
    objectives are as those objectives give them."""

    @property
    def axis(self) -> Axis:
        """A loss: it counts as exp(-divergence)."""
        return Axis(unit=NATS, direction="minimize")

    @property
    def borrows_items(self) -> bool:
        return self.path is None

    @field_validator("role")
    @classmethod
    def _is_general(cls, role: Role) -> Role:
        if role != "general":
            raise ValueError("a divergence from the base is 0 at the base: it is `role: general`")
        return role


class PythonObjective(ObjectiveSection):
    """A function of yours: `function(model, tokenizer, item_ids) -> scores`."""

    implementation = "backtrack.evaluate.objectives.function:FunctionScores"
    calls_model = True

    kind: Literal["python"]
    function: str
    """`module:function`; `function.item_ids()` lists the items, or `items` says how many."""
    items: Annotated[int, Field(ge=1)] | None = None
    """Number of items, if the function does not list them."""
    cluster: str | None = None
    """`module:function` from an item's id to the name of what it shares with others. Items that
    share it are drawn, resampled and counted together."""
    direction: Direction = "maximize"
    """Whether more or less is better."""
    unit: str = FRACTION
    """`fraction` for scores between 0 and 1, `nats a token` or `bits a byte` for losses; any other
    is a label, and needs `range`."""

    @property
    def axis(self) -> Axis:
        """As the recipe says."""
        return Axis(unit=self.unit, direction=self.direction)

    @property
    def code(self) -> str | None:
        """Its functions."""
        if self.cluster is not None:
            return f"the functions {self.function} and {self.cluster}"
        return f"the function {self.function}"

    @property
    def default_name(self) -> str:
        """The function."""
        return self.function.rpartition(":")[2]


def needs_range(unit: str) -> str:
    """Why scores in a unit cannot be weighed against others, and what to do."""
    return (
        f"scores in {unit!r} have no scale to weigh them by: write `range: [worst, best]`, the "
        "scores that count as 0 and 100 points"
    )


Objective = Annotated[ObjectiveSection, OfKind(ObjectiveSection)]
