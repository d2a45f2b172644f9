"""A recipe: one YAML file that says what to train, what to measure and how to choose.

`load_recipe` lists every fault of a file at once, each with the nearest key where a name is
unknown. Keys under `sft` and `method` belong to TRL and PEFT; they are checked where those
libraries are at hand (`backtrack.train.check`), and passed in as `checks`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from backtrack.errors import RecipeError
from backtrack.point import MAX_ALPHA
from backtrack.records import Constraints, Direction, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pydantic_core import ErrorDetails


class Section(BaseModel):
    """Base of a recipe's sections; abstract. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSection(Section):
    """The model before training. A bare name stands for `{model: name}`."""

    model: str
    """Hub name, or a folder (relative to the recipe)."""
    revision: str | None = None
    """Hub revision: a branch, a tag or a commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the weights are loaded in; `auto` is the type of the files."""
    trust_remote_code: bool = False
    """Run code from the model's repository. Off unless asked for by name."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Quantize on loading by bitsandbytes (NF4, or LLM.int8), as a QLoRA run was trained on."""


class FullMethod(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class PeftMethod(BaseModel):
    """A PEFT adapter; every other key is a field of its PEFT configuration."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    """PEFT's name of the method in lower case: `lora`, `oft`, `adalora`, `vera`, `ia3`, ..."""

    @property
    def settings(self) -> dict[str, Any]:
        """Fields for PEFT's configuration class."""
        return dict(self.model_extra or {})


def _sort_of_method(section: object) -> str:
    kind = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return "full" if kind == "full" else "adapter"


Method = Annotated[
    Annotated[FullMethod, Tag("full")] | Annotated[PeftMethod, Tag("adapter")],
    Discriminator(_sort_of_method),
]


class DataSection(Section):
    """Training data: prompt/completion pairs, chat messages or plain text."""

    train: str
    """A JSONL file, a folder `datasets` can load, or a Hub name."""
    subset: str | None = None
    """Configuration name of a data set that has several."""
    split: str = "train"
    """Split, with slices as in `datasets`: `train[700:]`."""
    prompt: str | None = None
    """Format over the fields, such as `Question: {question}\\nAnswer:`; none if the data has."""
    completion: str | None = None
    """Format for the completion; given together with `prompt`."""

    @model_validator(mode="after")
    def _both_formats(self) -> DataSection:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("give both `prompt` and `completion`, or neither")
        return self


class TrajectorySection(Section):
    """Which steps are kept, and how. The last step always is."""

    every_steps: Annotated[int, Field(ge=1)] = 10
    """A checkpoint every so many optimizer steps."""
    log_checkpoints: Annotated[int, Field(ge=2)] | None = None
    """Instead: so many checkpoints, evenly spaced in log steps from the first to the last."""
    every_distance: Annotated[float, Field(gt=0)] | None = None
    """Instead: each time the weights have moved by this share of their norm."""
    max_checkpoints: Annotated[int, Field(ge=2)] | None = None
    """How many are kept; past it the trajectory is thinned evenly."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """What all together may take; likewise."""
    storage: Literal["auto", "plain", "coded"] = "auto"
    """`coded` keeps whole models without loss in a fraction of their bytes, `plain` as stock
    libraries load them; `auto` codes whole models. Adapters are always plain."""
    key_every: Annotated[int, Field(ge=1)] = 8
    """Coded checkpoints from one that is read by itself to the next."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that is kept; `auto` is the type training computes in for whole models, so fp32 master
    weights are rounded once, and the live type for adapters."""

    @model_validator(mode="after")
    def _one_cadence(self) -> TrajectorySection:
        given = self.model_fields_set & {"every_steps", "log_checkpoints", "every_distance"}
        set_keys = sorted(key for key in given if getattr(self, key) is not None)
        if len(set_keys) > 1:
            raise ValueError(f"give one of {' and '.join(f'`{key}`' for key in set_keys)}")
        return self


class PlacementSection(Section):
    """How a model stands at a point."""

    form: Literal["auto", "attached", "merged"] = "auto"
    """`attached` leaves the adapter on the model, `merged` writes effective weights; `auto` is
    attached where the adapter has a native curve and a forward pass costs at most twice the
    base's. What is measured should be what is served: name the form you will export."""
    curve: Literal["auto", "native", "line"] = "auto"
    """`native` moves the method's own parameters, `line` the effective weights; `auto` is native
    where the method has one."""
    device: str = "auto"
    """A torch device; `auto` is the first GPU, else the CPU."""
    keep: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where the ends of a merged path are kept: on the device, in page-locked host memory, or in a
    file; `auto` is the fastest that fits."""


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


class ItemsSection(Section):
    """How many items an objective gives to choosing and to reporting; the two never overlap."""

    selection: Annotated[int, Field(ge=2)] = 200
    """Items the search sees."""
    report: Annotated[int, Field(ge=2)] = 200
    """Items kept for the chosen point, the base and the final checkpoint."""


ProfileKind = Literal["uniform", "safe", "min", "depth", "blocks", "modules"]
BaselineKind = Literal["checkpoint", "grid", "mean", "intruder", "truncated"]


class RacingSection(Section):
    """How a point earns its items: part after part, unless it is surely worse than the front."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.125, 0.25, 0.375, 0.5, 0.75)
    """Share of the selection items after which a point is looked at; empty for no racing."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """How sure a point must be worse to be dropped, over all looks at it together."""

    @field_validator("shares")
    @classmethod
    def _ascending(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)):
            raise ValueError("shares must ascend")
        return shares


class BudgetSection(Section):
    """What a search may cost; without any bound all points that stay in the race get all items."""

    items: Annotated[int, Field(ge=1)] | None = None
    """Items scored, over all points and objectives, those of earlier searches included."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read or written by the model, likewise."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time of this search."""


class SearchSection(Section):
    """How the path is searched."""

    alphas: tuple[Annotated[float, Field(gt=0, le=MAX_ALPHA)], ...] = tuple(
        i / 10 for i in range(1, 10)
    )
    """Strengths of the last checkpoint that are always measured, besides 0 and 1."""
    checkpoints: Annotated[int, Field(ge=0)] = 4
    """How many earlier checkpoints are always measured at full strength, evenly spaced."""
    trials: Annotated[int, Field(ge=0)] = 12
    """Points the sampler adds."""
    max_alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)] = 1.2
    """Largest strength the sampler tries."""
    profiles: Annotated[tuple[ProfileKind, ...], Field(min_length=1)] = ("uniform",)
    """Which profiles the sampler may propose; `safe` and `min` are measured at strength 1 too."""
    multipliers: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = (0.0, 1.0)
    """Lowest and highest multiplier of `depth`, `blocks` and `modules`."""
    sampler: Literal["gp", "tpe", "nsga2", "qmc", "random"] = "gp"
    """Optuna's sampler."""
    items: ItemsSection = ItemsSection()
    """Items an objective."""
    racing: RacingSection = RacingSection()
    """How a point earns its items."""
    budget: BudgetSection = BudgetSection()
    """What the search may cost."""
    storage: str | None = None
    """Database the workers share, such as `postgresql://host/name`; `study.db` of the run if none
    is given."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes on this machine, one a GPU where there are several."""
    patience_seconds: Annotated[int, Field(ge=4)] = 60
    """Without a sign of life for so long a worker is taken to be gone, and its work is redone."""
    baselines: tuple[BaselineKind, ...] = ("checkpoint", "grid")
    """What the choice is compared with on the report items."""
    mean_of: Annotated[int, Field(ge=2)] = 3
    """How many of the last checkpoints the baseline `mean` averages."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Sequences a forward pass; fixed, since the make-up of a batch moves scores."""
    seed: int = 0
    """Of the split into items, the sampler and the bootstrap."""

    @field_validator("multipliers")
    @classmethod
    def _range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] >= bounds[1]:
            raise ValueError("the lowest multiplier must lie below the highest")
        return bounds


class SelectSection(Constraints):
    """What is asked of the chosen point when the command line does not say."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the target in the utility; the rest is the general role's."""


class Recipe(Section):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's directory."""
    base: BaseSection
    """The model before training."""
    seed: int = 0
    """Of training."""
    output: str = "runs"
    """Folder the run is made in, relative to the working directory."""
    method: Method | None = None
    """What is trained; not needed for a run that is adopted."""
    data: DataSection | None = None
    """What it is trained on; likewise."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Any field of TRL's SFTConfig."""
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Peak rates of single layers, by a regular expression for their parameters' names, such as
    `layers\\.[0-3]\\.` or `lora_B`; the first that is found decides, `sft.learning_rate` is the
    others'."""
    trajectory: TrajectorySection = TrajectorySection()
    """Which steps are kept."""
    placement: PlacementSection = PlacementSection()
    """How a model stands at a point."""
    objectives: tuple[Objective, ...] = ()
    """What is measured."""
    search: SearchSection = SearchSection()
    """How the path is searched."""
    select: SelectSection = SelectSection()
    """How the point is chosen."""

    @field_validator("learning_rates")
    @classmethod
    def _expressions(cls, rates: dict[str, float]) -> dict[str, float]:
        for pattern in rates:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return rates

    @field_validator("base", mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("objectives")
    @classmethod
    def _named(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        named = tuple(
            o if o.name else o.model_copy(update={"name": _default_name(o)}) for o in objectives
        )
        names = [o.name for o in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two objectives are called {twice[0]!r}; give one a `name` of its own"
            )
        missing = [role for role in get_args(Role) if role not in {o.role for o in named}]
        if named and missing:
            raise ValueError(f"no objective has the role `{missing[0]}`; each role needs one")
        return named


def _default_name(objective: Objective) -> str:
    match objective:
        case LmEvalObjective():
            return objective.task
        case ExamplesObjective() | TextObjective():
            return Path(objective.path).stem
        case PythonObjective():
            return objective.function.rpartition(":")[2]


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    checks: Sequence[Callable[[dict[str, Any]], Iterable[str]]] = (),
) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `key.inner=value` strings, values in YAML; they win over the file.
        checks: Functions that list further faults of the raw mapping.

    Raises:
        RecipeError: With every fault found.
    """
    raw = _read_mapping(path)
    faults = [fault for text in overrides for fault in _override(raw, text)]
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(_with_absolute_paths(raw, path.parent.resolve()))
    except ValidationError as error:
        faults += [_sentence(details) for details in error.errors()]
    for check in checks:
        faults += check(raw)
    if faults or recipe is None:
        raise RecipeError(str(path), faults)
    return recipe


def packaged_recipes() -> tuple[Path, ...]:
    """Recipes that come with the package, by name."""
    here = Path(__file__).resolve().parent
    folder = next(
        (f for f in (here / "assets" / "recipes", here.parent / "recipes") if f.is_dir()), here
    )
    return tuple(sorted(folder.glob("*.yaml")))


def find_recipe(name: Path) -> Path:
    """The file `name` stands for: a file, or a recipe that comes with the package.

    Raises:
        RecipeError: There is none.
    """
    if name.is_file():
        return name
    known = {path.stem: path for path in packaged_recipes()}
    if str(name) in known:
        return known[str(name)]
    hint = nearest(str(name), known)
    raise RecipeError(str(name), [f"there is no such file, and no recipe of that name.{hint}"])


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(str(path), [f"it cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), ["it is not UTF-8 text"]) from error
    except yaml.YAMLError as error:
        raise RecipeError(
            str(path), [f"it is not YAML: {' '.join(str(error).split())}"]
        ) from error
    if not isinstance(raw, dict):
        raise RecipeError(
            str(path), ["it must be a mapping of keys; `name` and `base` are needed"]
        )
    return raw


def _override(raw: dict[str, Any], text: str) -> Iterable[str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return [f"--set {text!r}: write key.inner=value"]
    *outer, last = key.split(".")
    place: Any = raw
    for part in outer:
        place = _step_into(place, part)
        if place is None:
            return [f"--set {text!r}: {part!r} is not a section"]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return [f"--set {text!r}: {value!r} is not YAML"]
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        return [f"--set {text!r}: {key!r} is not a place in the recipe"]
    return []


def _step_into(place: object, part: str) -> object:
    if isinstance(place, dict):
        return place.setdefault(part, {})
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return place[int(part)]
    return None


def _with_absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy in which files that lie beside the recipe are named in full.

    A name that is no file beside the recipe is left alone: it may be a Hub name, or relative to
    the working directory.
    """

    def absolute(value: object) -> object:
        if isinstance(value, str) and value and (folder / value).exists():
            return str((folder / value).resolve())
        return value

    def mapped(section: object, keys: Sequence[str]) -> object:
        if not isinstance(section, dict):
            return section
        return {k: absolute(v) if k in keys else v for k, v in section.items()}

    copy = dict(raw)
    base = raw.get("base")
    copy["base"] = absolute(base) if isinstance(base, str) else mapped(base, ["model"])
    copy["data"] = mapped(raw.get("data"), ["train"])
    if isinstance(raw.get("objectives"), list):
        copy["objectives"] = [mapped(o, ["path", "include_path"]) for o in raw["objectives"]]
    return {k: v for k, v in copy.items() if k in raw}


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _sentence(details: ErrorDetails) -> str:
    where = ".".join(str(part) for part in details["loc"] if part not in _KINDS)
    if details["type"] == "extra_forbidden":
        key = str(details["loc"][-1])
        return f"{where}: unknown key.{nearest(key, _known_keys(details['loc']))}"
    if details["type"] == "missing":
        return f"{where}: this key is needed"
    if details["type"].startswith("union_tag"):
        found = (details.get("ctx") or {}).get("tag")
        expected = str((details.get("ctx") or {}).get("expected_tags", "")).replace("'", "")
        known = [tag.strip() for tag in expected.split(",") if tag.strip()]
        hint = nearest(str(found), known) if found else ""
        return f"{where}.kind: must be one of {', '.join(known) or 'the known kinds'}.{hint}"
    message = details["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {details['input']!r}"


_KINDS = ("full", "adapter", "lm_eval", "examples", "text", "python")


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys the section at `location` knows; the last part of `location` is the stray."""
    schema = TypeAdapter(Recipe).json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(schema, node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"].get(part, "")}
        else:
            node = node.get("properties", {}).get(part, {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        node = options[0]
    name = str(node.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = schema.get("$defs", {}).get(name, node)
    return found if "anyOf" not in found else _resolve(schema, found)
