"""What a run is: manifest and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from backtrack.records.record import Record

Storage = Literal["plain", "coded", "dcp", "zero", "shards"]


class BaseModelReference(Record):
    """Where the base is and what it is.

    Attributes:
        model: Hub name, or a folder.
        revision: Hub revision; none is the default branch.
        dtype: Type the weights are loaded in; `auto` is the type of the files.
        trust_remote_code: Whether code from the model's repository may run.
        quantization: How bitsandbytes quantizes it on loading; none is as its files are.
        fingerprint: sha256 of each tensor's bytes, type and shape, by name; empty where the files
            were not at hand.
    """

    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    quantization: Literal["4bit", "8bit"] | None = None
    fingerprint: dict[str, str] = Field(default_factory=dict)


class Method(Record):
    """How a run was trained: `kind` is `full` or PEFT's type in lower case (`lora`, `oft`)."""

    kind: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Manifest(Record):
    """What a run is.

    Attributes:
        format_version: Version of the directory's layout.
        name: The run's name.
        base: The model before training.
        method: How it was trained.
        seed: Seed of training; none where an adopted run does not say.
        versions: Version of each library that wrote it, by name.
        source: Folder an adopted run's checkpoints lie in; none for a run trained here.
        initial: Adapter saved before the first step, where its initialization rewrote the base.
        created: Time of creation, ISO 8601 in UTC.
    """

    format_version: Literal[1] = 1
    name: str
    base: BaseModelReference
    method: Method
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    source: str | None = None
    initial: str | None = None
    created: str


class CheckpointEntry(Record):
    """One line of `trajectory/index.jsonl`.

    Attributes:
        step: Optimizer step.
        folder: Folder of the weights: relative to `trajectory/`, or absolute in an adopted run.
        num_bytes: Size of the weight files.
        sha256: Digest of each weight file, by file name.
        train_loss: Loss logged last before the step.
        storage: How the weights are kept: `plain` safetensors; `coded` against another step (see
            `backtrack.run.codec`); or as another trainer left them: torch's distributed checkpoint
            (`dcp`), DeepSpeed ZeRO (`zero`), shards saved by each process (`shards`).
        reference: Step a coded checkpoint is coded against; none for a key frame.
        source: Folder another trainer's weights lie in, where it is not `folder`.
        distance: Way from the start of training, in shares of the start's norm, where the cadence
            is by distance.
        is_dropped: The step was given up for the budget; a later line may take it again.
    """

    step: Annotated[int, Field(ge=1)]
    folder: str
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: dict[str, str]
    train_loss: float | None = None
    storage: Storage = "plain"
    reference: int | None = None
    source: str | None = None
    distance: float | None = None
    is_dropped: bool = False

    @model_validator(mode="after")
    def _older_reference(self) -> CheckpointEntry:
        if self.reference is not None and self.reference >= self.step:
            raise ValueError(f"step {self.step} cannot be coded against step {self.reference}")
        return self
