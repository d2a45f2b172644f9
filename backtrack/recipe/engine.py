"""Sections on the engine: what answers the objectives, and how completions are sampled."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from backtrack.recipe.kinds import KindSection, OfKind
from backtrack.recipe.sections import Section

OWN_ARGUMENTS = {
    "gpu_memory_utilization": "engine.memory_share",
    "max_model_len": "engine.max_model_len",
    "dtype": "engine.dtype",
    "max_loras": "engine.max_loras",
    "trust_remote_code": "base.trust_remote_code",
    "model": "base",
    "tokenizer": "base",
    "enable_lora": "",
    "max_lora_rank": "",
    "lora_target_modules": "",
    "generation_config": "",
}
"""Arguments of vLLM's LLM that are set here, and the key of the recipe that sets them, if any."""


class EngineSection(KindSection):
    """What answers the objectives; abstract.

    A new engine is a subclass here and the class that `implementation` names, a subclass of
    `backtrack.evaluate.engine.Engine`.

    Attributes:
        is_in_process: The model runs in this process, so functions and baselines can call it.
        reads_quantized_base: It serves a base that bitsandbytes quantizes when it is loaded.
    """

    entry_point_group = "backtrack.engines"
    is_in_process: ClassVar[bool] = False
    reads_quantized_base: ClassVar[bool] = False

    @property
    def decisive(self) -> dict[str, Any]:
        """What of the engine decides scores: everything but how much is done at a time."""
        return self.model_dump(mode="json")


class TransformersSection(EngineSection):
    """The placed model answers by itself, in this process."""

    implementation = "backtrack.evaluate.transformers_engine:TransformersEngine"
    is_in_process = True
    reads_quantized_base = True

    kind: Literal["transformers"] = "transformers"


class VllmSection(EngineSection):
    """One vLLM engine, started once, answers at every point of a run.

    A LoRA that vLLM reads is given to it as adapters, several strengths in a batch; every other
    method is merged, and the engine's weights are replaced in place.
    """

    implementation = "backtrack.evaluate.vllm.engine:VllmEngine"

    kind: Literal["vllm"]
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the device's memory that it takes; on a CPU build, of the machine's."""
    max_model_len: Annotated[int, Field(ge=8)] | None = None
    """Tokens of prompt and answer together; none is the model's own context."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type it computes in; `auto` is the base's live type."""
    max_loras: Annotated[int, Field(ge=1)] = 8
    """Points in one batch, where points are adapters."""
    llm: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's `LLM`, such as `tensor_parallel_size` or `enforce_eager`."""

    @field_validator("llm")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(arguments.keys() & OWN_ARGUMENTS.keys())
        if taken:
            key = OWN_ARGUMENTS[taken[0]]
            way_out = f"set it by `{key}`" if key else "leave it out: it follows from the run"
            raise ValueError(f"`{taken[0]}` is not passed through; {way_out}")
        return arguments

    @property
    def decisive(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"memory_share", "max_loras"})


Engine = Annotated[EngineSection, OfKind(EngineSection)]


class SamplingSection(Section):
    """Several sampled completions an item, whose scores are averaged; greedy without it."""

    samples: Annotated[int, Field(ge=1)] = 16
    """Completions an item."""
    temperature: Annotated[float, Field(gt=0)] = 0.6
    """Of the softmax that is sampled from; PEFT-Arena's is 0.6, with 16 samples."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of probability, from the top, that is sampled from."""
    seed: int = 0
    """Each completion has a seed of its own, made of this, its prompt and its number."""
