"""Estimate what training a recipe needs: parameters, steps, bytes and evaluation tokens.

The model is built without weights, on torch's meta device, from the base's config.json if it is
local, else from a recorded shape (`backtrack.train.plan.shapes`). What cannot be known is None,
with the reason among the notes; nothing is guessed silently.

Counted: weights, gradients and AdamW's two averages in their training dtype; checkpoints as stored
on disk. Not counted: activations, memory for generation, the libraries themselves.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.objectives.documents import load_records
from backtrack.evaluate.objectives.lm_eval_lengths import TASK_LENGTHS
from backtrack.formatting import byte_size
from backtrack.free_memory import total_host_bytes
from backtrack.recipe import PeftMethod
from backtrack.train.methods.configs import FROZEN_A, KEEPLORA, MILORA, peft_config
from backtrack.train.methods.initial_factors import freeze_down
from backtrack.train.methods.milora import double_rank
from backtrack.train.plan.shapes import SHAPES
from backtrack.train.plan.tokens import tokens_per_item

if TYPE_CHECKING:
    from backtrack.recipe import (
        BaseSection,
        DataSection,
        ItemsSection,
        ObjectiveSection,
        Recipe,
    )
    from backtrack.records.run import Quantization

_SLICE = re.compile(r"\[(\d*):(\d+)\]$")
_QUANTIZED_BYTES = {"4bit": 0.56, "8bit": 1.06}
"""Bytes per quantized weight, including its scales."""
_CODED_SHARE = (0.24, 0.45)
"""Bytes of coded checkpoints over plain ones, at learning rates of 1e-5 and 1e-4."""


@dataclass
class Plan:
    """What training and searching a recipe need; None for what cannot be known before.

    Attributes:
        trainer: `SFT` or `GRPO`, and the method; `none` for a recipe that only measures.
        num_parameters: Parameters of the base.
        num_trainable: Trained parameters, of the base or an adapter.
        num_steps: Optimizer steps.
        num_checkpoints: Checkpoints of the trajectory.
        checkpoint_bytes: Size of one plain checkpoint.
        trajectory_bytes: Size of all plain checkpoints; those of full models are coded to less.
        state_bytes: Size of the Trainer's own two checkpoints, for resuming.
        memory_bytes: Memory for weights, gradients and optimizer, on one device.
        evaluation_tokens: Tokens read and generated per point, over all selection items.
        notes: Limits and reasons of the numbers, one sentence each.
    """

    trainer: str
    num_parameters: int | None = None
    num_trainable: int | None = None
    num_steps: int | None = None
    num_checkpoints: int | None = None
    checkpoint_bytes: int | None = None
    trajectory_bytes: int | None = None
    state_bytes: int | None = None
    memory_bytes: int | None = None
    evaluation_tokens: int | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(recipe: Recipe) -> Plan:
    """Estimate what training a recipe and measuring one point of it need.

    Nothing is downloaded, and only configurations, local data and a local tokenizer are loaded.
    """
    method = recipe.method
    plan = Plan("none" if method is None else f"{recipe.paradigm.upper()}, {method.kind}")
    _count_weights(plan, recipe)
    if method is not None:
        _count_steps(plan, recipe)
        _count_bytes(plan, recipe)
    _count_tokens(plan, recipe)
    return plan


def _count_weights(plan: Plan, recipe: Recipe) -> None:
    config = _config(recipe.base)
    if config is None:
        plan.notes.append(
            f"the config.json of {recipe.base.model} is in neither the Hub's cache nor a local "
            "folder, so parameters, bytes and memory are not known"
        )
        return
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = copy.deepcopy(_meta_model(config.to_json_string(), config))
            plan.num_parameters = sum(p.numel() for p in model.parameters())
            if isinstance(recipe.method, PeftMethod):
                model = get_peft_model(model, _adapter(recipe.method), low_cpu_mem_usage=True)
            if _initialization(recipe.method) in (KEEPLORA, FROZEN_A):
                freeze_down(model)
            if recipe.method is not None:
                plan.num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    except (RuntimeError, ValueError, TypeError) as error:
        plan.notes.append(
            f"{plan.trainer} cannot be counted without the base's weights "
            f"({' '.join(str(error).split())})"
        )
    if plan.num_trainable is not None and _initialization(recipe.method) == MILORA:
        # Half of each factor is frozen.
        plan.num_trainable //= 2


_MODELS: dict[str, Any] = {}


def _meta_model(key: str, config: Any) -> Any:
    """A model without weights, built once for all the entrants of an arena."""
    if key not in _MODELS:
        auto: Any = AutoModelForCausalLM
        _MODELS[key] = auto.from_config(config)
    return _MODELS[key]


def _adapter(method: PeftMethod) -> Any:
    """Return the adapter's configuration, with an initialization that reads no weights."""
    settings = {k: v for k, v in method.settings.items() if k != "init_lora_weights"}
    adapter: Any = peft_config(method.kind, settings)
    return double_rank(adapter) if _initialization(method) == MILORA else adapter


def _initialization(method: object) -> str | None:
    """LoRA's initialization; None for another method, or PEFT's default."""
    return method.settings.get("init_lora_weights") if isinstance(method, PeftMethod) else None


def _config(base: BaseSection) -> Any:
    """Return the base's configuration from its folder, the Hub's cache or `SHAPES`; else None."""
    with suppress(OSError, ValueError):
        return AutoConfig.from_pretrained(
            base.model,
            revision=base.revision,
            trust_remote_code=base.trust_remote_code,
            local_files_only=True,
        )
    shape = dict(SHAPES.get(base.model, {}))
    return AutoConfig.for_model(shape.pop("model_type"), **shape) if shape else None


def _count_steps(plan: Plan, recipe: Recipe) -> None:
    settings = recipe.trainer_settings
    max_steps = int(settings.get("max_steps", -1))
    if max_steps > 0:
        plan.num_steps = max_steps
    elif recipe.data is not None:
        num = _num_sequences(recipe, recipe.data)
        if num is None or settings.get("packing"):
            plan.notes.append(
                "the number of steps depends on data that is not local, or is packed; set "
                "`max_steps` to fix it"
            )
            return
        batch = (
            int(settings.get("per_device_train_batch_size", 8))
            * int(settings.get("gradient_accumulation_steps", 1))
        )  # fmt: skip
        epochs = float(settings.get("num_train_epochs", 3))
        whole = math.floor if settings.get("dataloader_drop_last") else math.ceil
        plan.num_steps = math.ceil(epochs * whole(num / batch))
        plan.notes.append("steps are those of one process; n processes need n times fewer")


def _num_sequences(recipe: Recipe, data: DataSection) -> int | None:
    """Return the number of examples that TRL makes batches of in an epoch."""
    num, settings = _num_examples(data), recipe.trainer_settings
    if num is None or recipe.paradigm not in ("grpo", "kto"):
        return num
    if recipe.paradigm == "grpo":
        generations = int(settings.get("num_generations", 8))
        return num * generations * int(settings.get("num_iterations", 1))
    if Path(data.train).exists():
        with suppress(ObjectiveError):
            has_pairs = "chosen" in load_records(data.train, data.subset, data.split)[0]
            return 2 * num if has_pairs else num
    return None


def _num_examples(data: DataSection) -> int | None:
    """Return the number of examples, from the slice if it has an end, else from local data."""
    bounds = _SLICE.search(data.split)
    if bounds:
        return int(bounds[2]) - int(bounds[1] or 0)
    if not Path(data.train).exists():
        return None
    with suppress(ObjectiveError):
        return len(load_records(data.train, data.subset, data.split))
    return None


def _weight_size(quantization: Quantization | None, full_size: float) -> float:
    """Bytes per weight in memory."""
    if isinstance(quantization, dict):
        quantization = "4bit" if quantization.get("load_in_4bit") else "8bit"
    return full_size if quantization is None else _QUANTIZED_BYTES[quantization]


def _count_bytes(plan: Plan, recipe: Recipe) -> None:
    if plan.num_parameters is None or plan.num_trainable is None:
        return
    is_adapter = isinstance(recipe.method, PeftMethod)
    base_size = _size(recipe.base)
    # PEFT trains adapters of half-precision bases in fp32, unless told otherwise.
    live_size = 4.0 if is_adapter and recipe.adapter_dtype == "auto" else base_size
    stored_size = _stored_size(recipe, live_size, is_adapter=is_adapter)
    plan.checkpoint_bytes = int(plan.num_trainable * stored_size)
    if _initialization(recipe.method) in (MILORA, KEEPLORA, FROZEN_A):
        plan.checkpoint_bytes *= 2  # what is frozen is saved too
    plan.state_bytes = int(2 * 3 * plan.num_trainable * live_size)
    weight_size = _weight_size(recipe.base.quantization, base_size)
    weights = plan.num_parameters * weight_size
    is_computed_before = recipe.trainer_settings.get("precompute_ref_log_probs")
    if not is_adapter and recipe.has_reference and not is_computed_before:
        cause = recipe.paradigm if recipe.grpo is None else "grpo.beta"
        plan.notes.append(f"`{cause}` needs a second copy of the weights as the reference model")
        weights *= 2
    # An adapter, its gradient and AdamW's two averages; a full model's weights are counted above.
    plan.memory_bytes = int(weights + (4 if is_adapter else 3) * plan.num_trainable * live_size)
    plan.num_checkpoints = _num_checkpoints(recipe, plan.num_steps)
    if plan.num_checkpoints is not None:
        plan.trajectory_bytes = plan.num_checkpoints * plan.checkpoint_bytes
        if recipe.trajectory.max_bytes is not None:
            plan.trajectory_bytes = min(plan.trajectory_bytes, recipe.trajectory.max_bytes)
    if not is_adapter and recipe.trajectory.storage != "plain":
        low, high = _CODED_SHARE
        plan.notes.append(
            f"checkpoints of full models are coded to {low:.2f} of their plain bytes at learning "
            f"rates of 1e-5, to {high:.2f} at 1e-4"
        )


def _size(base: BaseSection) -> float:
    """Return the bytes per weight in the dtype the base is loaded in."""
    name: str = base.dtype
    if name == "auto":
        config = _config(base)
        name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return float(getattr(torch, name).itemsize)


def _stored_size(recipe: Recipe, live_size: float, *, is_adapter: bool) -> float:
    if recipe.trajectory.dtype != "auto":
        return float(getattr(torch, recipe.trajectory.dtype).itemsize)
    settings = recipe.trainer_settings
    if not is_adapter and (settings.get("bf16") or settings.get("fp16")):
        return 2.0
    return live_size


def _num_checkpoints(recipe: Recipe, num_steps: int | None) -> int | None:
    section = recipe.trajectory
    num: int | None = None
    if section.log_checkpoints is not None:
        num = section.log_checkpoints
    elif section.every_distance is None and num_steps is not None:
        num = math.ceil(num_steps / section.every_steps)
    limits = [n for n in (num, section.max_checkpoints) if n is not None]
    return min(limits) if limits else None


def _count_tokens(plan: Plan, recipe: Recipe) -> None:
    total = 0
    for objective in recipe.objectives:
        tokens = tokens_per_item(objective, recipe.base)
        if tokens is None:
            plan.notes.append(
                f"tokens a point are without {objective.name!r}, whose documents are not at hand"
            )
        else:
            total += round(tokens * _num_selection(objective, recipe.search.items))
    if total:
        plan.evaluation_tokens = total


def _num_selection(objective: ObjectiveSection, items: ItemsSection) -> int:
    """Selection items of an objective: fewer where it has fewer documents than are asked for."""
    lengths = TASK_LENGTHS.get(getattr(objective, "task", ""))
    requested = items.selection + items.report
    if lengths is None or lengths.num_documents is None or lengths.num_documents >= requested:
        return items.selection
    return round(lengths.num_documents * items.selection / requested)


def resource_shortages(plan: Plan, folder: Path) -> list[str]:
    """Return one sentence for each resource this machine has too little of.

    Args:
        plan: The plan.
        folder: The folder of runs.
    """
    import shutil

    shortages = []
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    disk = (plan.trajectory_bytes or 0) + (plan.state_bytes or 0)
    if disk > free:
        shortages.append(f"{byte_size(disk)} of disk are needed, and {byte_size(free)} are free.")
    memory = _memory_bytes()
    if (plan.memory_bytes or 0) > memory:
        where = "GPU has" if torch.cuda.is_available() else "machine has"
        shortages.append(
            f"{byte_size(plan.memory_bytes or 0)} of memory are needed before activations, "
            f"and this {where} {byte_size(memory)}."
        )
    return shortages


def _memory_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return total_host_bytes()


def require_plannable(recipe: Recipe) -> None:
    """Refuse a dry run of a recipe that could not be trained.

    Raises:
        UsageError: It has no method or no data, or its sections contradict each other.
        RecipeError: Keys for TRL or PEFT are wrong.
        RunError: The path of its run is occupied.
    """
    from backtrack.train.trainers.build import require_trainable
    from backtrack.train.trajectory.new_run import require_free

    require_trainable(recipe)
    require_free(Path(recipe.output) / recipe.name, hint="continue with --resume")
    if recipe.data is not None and Path(recipe.data.train).exists():
        try:
            load_records(recipe.data.train, recipe.data.subset, recipe.data.split)
        except ObjectiveError as error:
            raise UsageError(f"data: {error}") from error
