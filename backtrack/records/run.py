"""Records of a run: the manifest and the checkpoint index."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from backtrack.records.adapter_config import ADAPTER_CONFIG
from backtrack.records.record import Record, short_digest

BITSANDBYTES_FIELDS = ("load_in_", "bnb_4bit_", "llm_int8_")
"""Beginnings of the names of BitsAndBytesConfig's fields."""


def _require_bitsandbytes(settings: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(name for name in settings if not name.startswith(BITSANDBYTES_FIELDS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a field of transformers' BitsAndBytesConfig")
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        raise ValueError("set `load_in_4bit: true` or `load_in_8bit: true`")
    return settings


Quantization = (
    Literal["4bit", "8bit"] | Annotated[dict[str, Any], AfterValidator(_require_bitsandbytes)]
)
"""How bitsandbytes quantizes a model on loading: `4bit` is NF4 with double quantization as in
QLoRA, `8bit` is LLM.int8; or fields of transformers' `BitsAndBytesConfig`."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

Storage = Literal["plain", "coded", "dcp", "zero", "shards"]


class BaseModelReference(Record):
    """The base model of a run.

    Attributes:
        model: Hub name, or a folder.
        revision: Hub revision; None is the default branch.
        dtype: Dtype the weights are loaded in; `auto` is the dtype of the files.
        trust_remote_code: Whether code from the model's repository may run.
        quantization: How bitsandbytes quantizes it on loading; None loads it as stored.
        architecture: Class of transformers in which the base was trained; None is the one that its
            config.json names.
        fingerprint: sha256 of each tensor's bytes, dtype and shape, by name; empty if the files
            were not available.
        run: Folder of the run whose base it is, for messages; None before there is one. It is not
            written.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    quantization: Quantization | None = None
    architecture: str | None = None
    fingerprint: dict[str, str] = Field(default_factory=dict)
    run: str | None = Field(default=None, exclude=True)

    @property
    def digest(self) -> str:
        """Identity of the weights and of how they are loaded, wherever they lie."""
        weights = self.fingerprint or [self.model, self.revision]
        return short_digest(weights, self.dtype, self.quantization, self.architecture)


class Method(Record):
    """Training method of a run: `kind` is `full` or PEFT's type in lower case (`lora`, `oft`)."""

    kind: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Manifest(Record):
    """What a run is.

    Paths are written as `backtrack.records.places` describes; those of an opened run are absolute.

    Attributes:
        format_version: Version of the directory's layout.
        name: The run's name.
        base: The model before training.
        method: How it was trained.
        seed: Seed of training; None if unknown, as in an adopted run.
        versions: Version of each library that wrote it, by name.
        source: Folder of an adopted run's checkpoints; None for a run trained by backtrack.
        initial: Folder of the adapter saved before the first step, if its initialization rewrote
            the base; else None.
        notes: What adoption found that a reader of the scores should know, in sentences.
        folders: Folders that the run was in whenever paths were written, oldest first.
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
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    created: str


class CheckpointEntry(Record):
    """One line of `trajectory/index.jsonl`.

    Attributes:
        step: Optimizer step.
        folder: Folder of the weights: relative to `trajectory/`; in an adopted run it may lead out
            of it, and is absolute once read.
        num_bytes: Size of the weight files.
        sha256: Digest of each weight file, by file name.
        content: Digest of the decoded weights of a coded checkpoint, which recoding keeps; empty
            for others.
        config: Digest of the fields of an adapter's configuration that decide its model; empty for
            whole models, and in entries of versions that did not record it.
        modified_ns: Latest time of modification of the weight files when they were digested, in
            nanoseconds; None if unknown.
        train_loss: The training loss logged last before the step; None if unknown.
        storage: Format of the weights: `plain` safetensors; `coded` against another step (see
            `backtrack.run.codec`); or another trainer's: torch's distributed checkpoint (`dcp`),
            DeepSpeed ZeRO (`zero`), one file per process (`shards`).
        reference: Step a coded checkpoint is coded against; None for a key frame.
        source: Folder of another trainer's weights, likewise; None if they are in `folder`.
        distance: Norm of the change since the start of training, relative to the norm at the
            start; None unless checkpoints are spaced by distance.
        is_dropped: Whether the step was deleted; a later line may add it again.
    """

    step: Annotated[int, Field(ge=1)]
    folder: str
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: dict[str, str]
    content: str = ""
    config: str = ""
    modified_ns: int | None = None
    train_loss: float | None = None
    storage: Storage = "plain"
    reference: int | None = None
    source: str | None = None
    distance: float | None = None
    is_dropped: bool = False

    @property
    def digest(self) -> str:
        """What measurements name the checkpoint by."""
        return self.content or short_digest(self.contents)

    @property
    def contents(self) -> dict[str, str]:
        """Digest of each file that decides the model, by file name."""
        return self.sha256 | ({ADAPTER_CONFIG: self.config} if self.config else {})

    def is_same(self, recorded: CheckpointEntry) -> bool:
        """Whether this is the recorded checkpoint, as far as it was recorded."""
        return self.sha256 == recorded.sha256 and recorded.config in {"", self.config}

    def as_recorded(self, recorded: CheckpointEntry) -> CheckpointEntry:
        """This entry; under the digest that measurements know if it is the recorded checkpoint."""
        is_known = self.is_same(recorded)
        return self.model_copy(update={"config": recorded.config}) if is_known else self

    @model_validator(mode="after")
    def _older_reference(self) -> CheckpointEntry:
        if self.reference is not None and self.reference >= self.step:
            raise ValueError(f"step {self.step} cannot be coded against step {self.reference}")
        return self
