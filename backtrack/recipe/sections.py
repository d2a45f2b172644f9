"""Recipe sections for the base, the method, the data, the trajectory and the placement."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from backtrack.records.run import Dtype, Quantization


class Section(BaseModel):
    """Base of a recipe's sections; abstract. Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


BARE_KEYS = {"base": "model", "engine": "kind"}
"""Sections that may be written as a bare text, and the key that it is short for."""


class BaseSection(Section):
    """The model before training. A bare name is short for `{model: name}`."""

    model: str
    """Hub name, or a folder (relative to the recipe)."""
    revision: str | None = None
    """Hub revision: a branch, a tag or a commit."""
    dtype: Dtype = "auto"
    """Dtype the weights are loaded in; `auto` is the dtype of the files."""
    trust_remote_code: bool = False
    """Run code from the model's repository."""
    quantization: Quantization | None = None
    """Quantize on loading with bitsandbytes: `4bit` (NF4 with double quantization, as in QLoRA),
    `8bit` (LLM.int8), or fields of transformers' BitsAndBytesConfig, such as
    `{load_in_4bit: true, bnb_4bit_quant_type: fp4}`."""


class FullMethod(Section):
    """Every weight is trained."""

    kind: Literal["full"]


class PeftMethod(BaseModel):
    """A PEFT adapter; every other key is a field of its PEFT configuration."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: str
    """PEFT's name of the method, in lower case: `lora`, `oft`, `adalora`, `vera`, `ia3`, ..."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+: the learning rate of `lora_B` over that of `lora_A`, which is the trainer's."""

    @property
    def settings(self) -> dict[str, Any]:
        """Fields for PEFT's configuration class."""
        return dict(self.model_extra or {})


def _method_tag(section: object) -> str:
    kind = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", None)
    return "full" if kind == "full" else "adapter"


Method = Annotated[
    Annotated[FullMethod, Tag("full")] | Annotated[PeftMethod, Tag("adapter")],
    Discriminator(_method_tag),
]


class DataSection(Section):
    """Training data: prompt/completion pairs, chat messages, plain text, or preferences."""

    train: str
    """A JSONL file, a folder `datasets` can load, or a Hub name."""
    subset: str | None = None
    """Configuration name, for a data set that has several."""
    split: str = "train"
    """Split, with a slice as in `datasets`: `train[700:]`."""
    prompt: str | None = None
    """Format over the fields, such as `Question: {question}\\nAnswer:`; omit it if the data has
    prompts."""
    completion: str | None = None
    """Format of the completion; required with `prompt`, except for `grpo`, which has none, and for
    pairs."""
    chat: bool = False
    """Format prompt and completion as user and assistant turns of the chat template."""
    system: str | None = None
    """System message; needs `chat`."""
    answer_end: Literal["template", "eos"] = "template"
    """What ends an answer of a chat: what the chat template puts there, or the tokenizer's
    end-of-sequence token, right after the answer."""
    overlong: Literal["cut", "drop"] = "cut"
    """Whether SFT's examples of more tokens than `sft.max_length` are cut there, or left out."""
    eval: str | None = None
    """Evaluation data in the same format: a file, a folder or a Hub name."""
    eval_split: str | None = None
    """Split of `eval`, or else of `train`, such as `train[:500]`."""

    @model_validator(mode="after")
    def _formats(self) -> DataSection:
        if self.completion is not None and self.prompt is None:
            raise ValueError("give both `prompt` and `completion`, or neither")
        if self.system is not None and not self.chat:
            raise ValueError("`system` is a turn of a chat; set `chat: true`")
        if self.answer_end == "eos" and not (self.chat and self.prompt):
            raise ValueError("`answer_end` is of answers of a chat; set `chat` and `prompt`")
        return self


class TrajectorySection(Section):
    """Which steps are saved, and how. The last step is always saved."""

    every_steps: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps from one checkpoint to the next."""
    log_checkpoints: Annotated[int, Field(ge=2)] | None = None
    """Instead: number of checkpoints, evenly spaced in the logarithm of the step."""
    every_distance: Annotated[float, Field(gt=0)] | None = None
    """Instead: save whenever the weights have changed by this share of their norm."""
    max_checkpoints: Annotated[int, Field(ge=2)] | None = None
    """Largest number of checkpoints; beyond it the trajectory is thinned evenly."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Largest total size of the checkpoints; beyond it the trajectory is thinned evenly."""
    storage: Literal["auto", "plain", "coded"] = "auto"
    """`coded` compresses whole models losslessly, `plain` is what stock libraries load; `auto` is
    coded for whole models. Adapters are always plain."""
    key_every: Annotated[int, Field(ge=1)] = 8
    """Number of coded checkpoints from one key frame to the next."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of saved weights; for whole models `auto` is the dtype training computes in, so fp32
    master weights are rounded once; for adapters it is the live dtype."""

    @model_validator(mode="after")
    def _one_cadence(self) -> TrajectorySection:
        given = self.model_fields_set & {"every_steps", "log_checkpoints", "every_distance"}
        set_keys = sorted(key for key in given if getattr(self, key) is not None)
        if len(set_keys) > 1:
            raise ValueError(f"give one of {' and '.join(f'`{key}`' for key in set_keys)}")
        return self

    @model_serializer(mode="wrap")
    def _without_the_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the default `every_steps` beside another cadence, so that the output is valid."""
        written: dict[str, Any] = write(self)
        if self.log_checkpoints is not None or self.every_distance is not None:
            written.pop("every_steps", None)
        return written


class PlacementSection(Section):
    """How a model is set to a point."""

    form: Literal["auto", "attached", "merged"] = "auto"
    """`attached` leaves the adapter on the model, `merged` writes effective weights; `auto` is
    attached if the adapter has a native curve and a forward pass costs at most twice the base's.
    Measure the form you will serve: name the form you will export."""
    curve: Literal["auto", "native", "line"] = "auto"
    """`native` moves the method's own parameters, `line` the effective weights; `auto` is native
    if the method has a native curve."""
    device: str = "auto"
    """A torch device; `auto` is the first GPU, else the CPU."""
    keep: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where the ends of a merged path are stored: on the device, in page-locked host memory, or in
    a file; `auto` is the fastest that fits."""
