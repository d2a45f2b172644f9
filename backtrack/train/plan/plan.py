"""What training a recipe takes, told before anything is loaded: weights, steps, bytes, tokens.

The model is built without weights, on torch's meta device, from the base's config.json where it is
at hand and from a recorded shape where it is not (`backtrack.train.plan.shapes`). What cannot be
known is none, with the reason among the notes; nothing is guessed silently.

Counted: weights, gradients and AdamW's two averages in the type they are trained in; checkpoints
as they lie on disk. Not counted: activations, what generating takes, the libraries themselves.
"""

from __future__ import annotations

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
from backtrack.formatting import byte_size
from backtrack.recipe import PeftMethod
from backtrack.train.methods.configs import MILORA, peft_config
from backtrack.train.methods.milora import doubled
from backtrack.train.plan.shapes import SHAPES
from backtrack.train.plan.tokens import tokens_an_item

if TYPE_CHECKING:
    from backtrack.recipe import BaseSection, DataSection, Recipe

_SLICE = re.compile(r"\[(\d*):(\d+)\]$")
_PACKED_BYTES = {"4bit": 0.56, "8bit": 1.06}
"""Bytes a packed weight, with its scales."""
CODED_SHARE = (0.24, 0.45)
"""Coded checkpoints' share of their plain bytes, at learning rates of 1e-5 and 1e-4."""


@dataclass
class Plan:
    """What a recipe takes; none where it cannot be known beforehand.

    Attributes:
        trainer: `SFT` or `GRPO`, and the method.
        num_parameters: Weights of the base.
        num_trainable: Of them, or beside them, that are trained.
        num_steps: Optimizer steps.
        num_checkpoints: Kept on the trajectory.
        checkpoint_bytes: Of one, plain.
        trajectory_bytes: Of all, plain; whole models are coded into a share of it.
        state_bytes: Of the Trainer's own two checkpoints, for resuming.
        memory_bytes: Weights, gradients and optimizer, on one device.
        evaluation_tokens: Read and written a point, over all selection items.
        notes: What the numbers do not say.
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
    """What training a recipe takes, and measuring a point of it.

    Nothing is downloaded and nothing is loaded but configurations, local data and a local
    tokenizer.
    """
    kind = "none" if recipe.method is None else recipe.method.kind
    plan = Plan(trainer=f"{'SFT' if recipe.grpo is None else 'GRPO'}, {kind}")
    _count_weights(plan, recipe)
    _count_steps(plan, recipe)
    _count_bytes(plan, recipe)
    _count_tokens(plan, recipe)
    return plan


def _count_weights(plan: Plan, recipe: Recipe) -> None:
    config = _config(recipe.base)
    if config is None:
        plan.notes.append(
            f"the shape of {recipe.base.model} is not at hand, so weights, bytes and memory are "
            "not known; they are once its config.json is in the Hub's cache or a local folder"
        )
        return
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            auto: Any = AutoModelForCausalLM
            model: Any = auto.from_config(config)
            plan.num_parameters = sum(p.numel() for p in model.parameters())
            if isinstance(recipe.method, PeftMethod):
                model = get_peft_model(model, _adapter(recipe.method), low_cpu_mem_usage=True)
            if recipe.method is not None:
                plan.num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    except (RuntimeError, ValueError, TypeError) as error:
        plan.notes.append(
            f"{plan.trainer} cannot be counted without the base's weights "
            f"({' '.join(str(error).split())})"
        )
    if plan.num_trainable is not None and _is_milora(recipe):
        # Half of each factor stays as it began.
        plan.num_trainable //= 2


def _adapter(method: PeftMethod) -> Any:
    """The adapter's configuration; a start that reads weights counts as any other."""
    settings = {k: v for k, v in method.settings.items() if k != "init_lora_weights"}
    adapter: Any = peft_config(method.kind, settings)
    is_milora = method.settings.get("init_lora_weights") == MILORA
    return doubled(adapter) if is_milora else adapter


def _is_milora(recipe: Recipe) -> bool:
    method = recipe.method
    return isinstance(method, PeftMethod) and method.settings.get("init_lora_weights") == MILORA


def _config(base: BaseSection) -> Any:
    """The base's configuration: of its folder, of the Hub's cache, or as recorded."""
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
    settings = recipe.sft if recipe.grpo is None else recipe.grpo
    max_steps = int(settings.get("max_steps", -1))
    if max_steps > 0:
        plan.num_steps = max_steps
    elif recipe.data is not None:
        num = _num_examples(recipe.data)
        if num is None or settings.get("packing"):
            plan.notes.append(
                "the number of steps depends on data that is not at hand, or is packed; "
                "set `max_steps` to fix it"
            )
            return
        batch = (
            int(settings.get("per_device_train_batch_size", 8))
            * int(settings.get("gradient_accumulation_steps", 1))
        )  # fmt: skip
        epochs = float(settings.get("num_train_epochs", 3))
        repeats = 1
        if recipe.grpo is not None:
            repeats = int(settings.get("num_generations", 8)) * int(
                settings.get("num_iterations", 1)
            )
        plan.num_steps = math.ceil(epochs * math.ceil(num * repeats / batch))
        plan.notes.append("steps are those of one process; so many processes take as many fewer")


def _num_examples(data: DataSection) -> int | None:
    """How many there are: by the slice if it ends, else by the data if it is a file."""
    found = _SLICE.search(data.split)
    if found:
        return int(found[2]) - int(found[1] or 0)
    if not Path(data.train).exists():
        return None
    with suppress(ObjectiveError):
        return len(load_records(data.train, data.subset, data.split))
    return None


def _count_bytes(plan: Plan, recipe: Recipe) -> None:
    if plan.num_parameters is None or plan.num_trainable is None:
        return
    is_adapter = isinstance(recipe.method, PeftMethod)
    base_size = _size(recipe.base)
    # PEFT keeps adapters of half-precision bases in full precision.
    live_size = 4.0 if is_adapter else base_size
    kept_size = _kept_size(recipe, live_size, is_adapter=is_adapter)
    plan.checkpoint_bytes = int(plan.num_trainable * kept_size)
    if _is_milora(recipe):
        plan.checkpoint_bytes *= 2
    plan.state_bytes = int(2 * 3 * plan.num_trainable * live_size)
    packed = _PACKED_BYTES.get(recipe.base.quantization or "", base_size)
    weights = plan.num_parameters * packed
    if not is_adapter and float((recipe.grpo or {}).get("beta", 0.0)):
        plan.notes.append("`grpo.beta` holds a second copy of the weights as the reference")
        weights *= 2
    # An adapter, its gradient and AdamW's averages; a whole model's own weights are counted above.
    plan.memory_bytes = int(weights + (4 if is_adapter else 3) * plan.num_trainable * live_size)
    plan.num_checkpoints = _num_checkpoints(recipe, plan.num_steps)
    if plan.num_checkpoints is not None:
        plan.trajectory_bytes = plan.num_checkpoints * plan.checkpoint_bytes
        if recipe.trajectory.max_bytes is not None:
            plan.trajectory_bytes = min(plan.trajectory_bytes, recipe.trajectory.max_bytes)
    if not is_adapter and recipe.trajectory.storage != "plain":
        low, high = CODED_SHARE
        plan.notes.append(
            f"whole models are coded: {low:.2f} of the plain bytes at learning rates of 1e-5, "
            f"{high:.2f} at 1e-4"
        )


def _size(base: BaseSection) -> float:
    """Bytes a weight as it is loaded."""
    name: str = base.dtype
    if name == "auto":
        config = _config(base)
        name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return float(getattr(torch, name).itemsize)


def _kept_size(recipe: Recipe, live_size: float, *, is_adapter: bool) -> float:
    if recipe.trajectory.dtype != "auto":
        return float(getattr(torch, recipe.trajectory.dtype).itemsize)
    settings = recipe.sft if recipe.grpo is None else recipe.grpo
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
        tokens = tokens_an_item(objective, recipe.base)
        if tokens is None:
            plan.notes.append(
                f"tokens a point are without {objective.name!r}, whose documents are not at hand"
            )
        else:
            total += round(tokens * recipe.search.items.selection)
    if total:
        plan.evaluation_tokens = total


def lacking_room(plan: Plan, folder: Path) -> list[str]:
    """What this machine lacks of what a plan needs, one sentence each; empty where it is enough.

    Args:
        plan: The plan.
        folder: Where runs are made.
    """
    import shutil

    lacking = []
    there = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(there).free
    disk = (plan.trajectory_bytes or 0) + (plan.state_bytes or 0)
    if disk > free:
        lacking.append(f"{byte_size(disk)} of disk are needed and {byte_size(free)} free.")
    memory = _memory_here()
    if (plan.memory_bytes or 0) > memory:
        where = "GPU has" if torch.cuda.is_available() else "machine has"
        lacking.append(
            f"{byte_size(plan.memory_bytes or 0)} of memory are needed before activations, "
            f"and this {where} {byte_size(memory)}."
        )
    return lacking


def _memory_here() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def require_plannable(recipe: Recipe) -> None:
    """Refuse a dry run of what could not be trained.

    Raises:
        UsageError: It has no method or no data, or its parts do not go together.
        RecipeError: Keys of TRL's or PEFT's are wrong.
        RunError: Its name is taken.
    """
    from backtrack.train.trainers.build import require_trainable
    from backtrack.train.trajectory.callback import require_free

    require_trainable(recipe)
    require_free(Path(recipe.output) / recipe.name, hint="go on with --resume")
    if recipe.data is not None and Path(recipe.data.train).exists():
        try:
            load_records(recipe.data.train, recipe.data.subset, recipe.data.split)
        except ObjectiveError as error:
            raise UsageError(f"data: {error}") from error
