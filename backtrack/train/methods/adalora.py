"""Allocate AdaLoRA's ranks during training, and regularize its loss.

PEFT leaves the rank allocation to the training loop. The orthogonal regularization that PEFT adds
to a model's own loss (`orth_reg_weight`) is missing from TRL's fused loss. Both are done here.

PEFT's `update_and_allocate` records the rank pattern in the configuration, and from then on saves
pruned factors. But a masked rank may be unmasked later, so a training resumed from such a save
would differ. Here the pattern is not recorded: files contain all ranks, with zeros where masked,
which is the same function. The allocator's running averages are saved beside the Trainer's
checkpoints, before each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import RunError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_FINAL = "final"


def set_total_step(config: Any, num_steps: int) -> None:
    """Set AdaLoRA's `total_step` unless the recipe did.

    Args:
        config: The AdaLoRA configuration; changed in place.
        num_steps: Optimizer steps of the training.

    Raises:
        UsageError: No step is left between `tinit` and `tfinal`.
    """
    if config.total_step > num_steps * 1000:
        config.total_step = num_steps
    if config.tinit >= config.total_step - config.tfinal:
        raise UsageError(
            f"AdaLoRA has no step in which to remove ranks: tinit={config.tinit}, "
            f"tfinal={config.tfinal}, and training takes {config.total_step} steps. Lower "
            "`method.tinit` or `method.tfinal`, or train longer."
        )


def orthogonality(model: Any) -> Tensor:
    """Return the weighted mean over factors P of the Frobenius norm of P P' - I."""
    config = model.peft_config[model.active_adapters[0]]
    norms = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.norm(product - torch.eye(len(product)).to(product)))
    weighted: Tensor = config.orth_reg_weight * torch.stack(norms).mean()
    return weighted


class AdaLoraCallback(TrainerCallback):
    """Masks the least important ranks at the steps of AdaLoRA's schedule."""

    def __init__(self) -> None:
        self._final_pattern: dict[str, list[bool]] | None = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Restore the running averages if training resumes."""
        if state.global_step == 0:
            return
        path = _file(args, state.global_step)
        if not path.is_file():
            raise RunError(
                f"{path} is missing, and AdaLoRA cannot resume without it. Train again under "
                "another `name`."
            )
        tensors = load_file(path)
        allocator = live["model"].base_model.rankallocator
        device = live["model"].device
        for average in _AVERAGES:
            saved = _with_prefix(tensors, average)
            setattr(allocator, average, {name: t.to(device) for name, t in saved.items()})
        final = _with_prefix(tensors, _FINAL)
        self._final_pattern = {name: mask.tolist() for name, mask in final.items()} or None

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Update the importances and mask, before the step's gradients are cleared."""
        tuner = live["model"].base_model
        config = tuner.peft_config[tuner.trainable_adapter_name]
        allocator, last = tuner.rankallocator, config.total_step - config.tfinal
        if state.global_step < last:
            allocator.update_and_allocate(tuner.model, state.global_step)
        elif self._final_pattern is None:
            _, self._final_pattern = allocator.update_and_allocate(
                tuner.model, state.global_step, force_mask=True
            )
            allocator.reset_ipt()
        else:
            allocator.mask_using_rank_pattern(tuner.model, self._final_pattern)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the running averages before the Trainer saves."""
        if control.should_save:
            self._write(args, state, live["model"])

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if control.should_save:
            self._write(args, state, live["model"])

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the running averages before a save that the evaluation may trigger."""
        if args.save_strategy == "best":
            self._write(args, state, live["model"])

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Delete the averages of checkpoints that the Trainer has deleted."""
        if state.is_world_process_zero:
            for path in Path(str(args.output_dir)).glob("adalora-*.safetensors"):
                step = path.stem.removeprefix("adalora-")
                if not (path.parent / f"checkpoint-{step}").is_dir():
                    path.unlink()

    def _write(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        if not state.is_world_process_zero:
            return
        allocator = model.base_model.rankallocator
        tensors = {
            f"{average}/{name}": tensor.contiguous()
            for average in _AVERAGES
            for name, tensor in getattr(allocator, average).items()
        }
        for name, mask in (self._final_pattern or {}).items():
            tensors[f"{_FINAL}/{name}"] = torch.tensor(mask)
        path = _file(args, state.global_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix/`, without it."""
    begin = f"{prefix}/"
    return {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}


def _file(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"adalora-{step}.safetensors"
