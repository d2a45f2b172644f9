"""Objectives: what is measured, each for one role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from backtrack.recipe.sections import Section
from backtrack.records import Direction, Role


class _Objective(Section):
    role: Role
    """`target`: what training is for. `general`: what must not be lost."""
    name: str = ""
    """Unique; the default is the task or the file's stem."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in the role's mean, relative to the role's other objectives."""


class LmEvalObjective(_Objective):
    """A task, group or tag of lm-eval, scored per document by one of its metrics."""

    kind: Literal["lm_eval"]
    task: str
    """Name of a task, a group or a tag; `*` matches many."""
    metric: str
    """A per-document metric of the task, such as `exact_match` or `acc_norm`."""
    filter: str = "none"
    """Filter of the task's outputs, such as `strict-match`."""
    direction: Direction = "maximize"
    """Whether more or less is better."""
    unit: str = "fraction"
    """`fraction` for scores between 0 and 1; else a label for the axis."""
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


class ExamplesObjective(_Objective):
    """Prompts with known completions, from a JSONL file or a data set."""

    kind: Literal["examples"]
    path: str
    """A JSONL file, a folder `datasets` can load, or a Hub name."""
    subset: str | None = None
    """Configuration name of a data set that has several."""
    split: str = "test"
    """Split, with slices as in `datasets`: `test[:500]`."""
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


class TextObjective(_Objective):
    """Bits per byte of running text; an item is one window of it."""

    kind: Literal["text"]
    path: str
    """A text file, a JSONL file or a data set with a field of text."""
    subset: str | None = None
    """Configuration name of a data set that has several."""
    split: str = "test"
    """Split, with slices as in `datasets`."""
    field: str = "text"
    """Format or name of the field that holds the text."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For a text file: where to begin, as a share of its length."""
    window_tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens an item."""
    max_items: Annotated[int, Field(ge=1)] = 1000
    """Windows at most, evenly spaced."""


class PythonObjective(_Objective):
    """A function of yours: `function(model, tokenizer, item_ids) -> scores`."""

    kind: Literal["python"]
    function: str
    """`module:function`; `function.item_ids()` lists the items, or `items` says how many."""
    items: Annotated[int, Field(ge=1)] | None = None
    """Number of items, if the function does not list them."""
    direction: Direction = "maximize"
    """Whether more or less is better."""
    unit: str = "fraction"
    """`fraction` for scores between 0 and 1; else a label for the axis."""


Objective = Annotated[
    LmEvalObjective | ExamplesObjective | TextObjective | PythonObjective,
    Field(discriminator="kind"),
]


def default_name(objective: Objective) -> str:
    """The task, the file or the function."""
    match objective:
        case LmEvalObjective():
            return objective.task
        case ExamplesObjective() | TextObjective():
            return Path(objective.path).stem
        case PythonObjective():
            return objective.function.rpartition(":")[2]
