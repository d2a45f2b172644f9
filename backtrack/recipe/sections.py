"""Sections on the model, the method, the data, the trajectory and the placement."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


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
    """Format for the completion; given together with `prompt`, but for `grpo`, which has none."""
    chat: bool = False
    """Give prompt and completion as turns of the tokenizer's chat template: user and assistant."""
    system: str | None = None
    """What the system says before; needs `chat`."""
    eval: str | None = None
    """What is evaluated during training, in the same shape: a file, a folder or a Hub name."""
    eval_split: str | None = None
    """Split of it; without `eval`, of the training data's own source: `train[:500]`."""

    @model_validator(mode="after")
    def _formats(self) -> DataSection:
        if self.completion is not None and self.prompt is None:
            raise ValueError("give both `prompt` and `completion`, or neither")
        if self.system is not None and not self.chat:
            raise ValueError("`system` is a turn of a chat; set `chat: true`")
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
