"""Take AdaLoRA's ranks to their budget while training goes on.

PEFT leaves the allocation to the training loop, and TRL's fused loss leaves the regularization
out that PEFT adds to a model's own loss (`orth_reg_weight`). Both are done here.

PEFT's `update_and_allocate` notes the pattern of ranks in the configuration, after which it saves
pruned factors; but a rank that is masked now may come back, so training resumed from such a save
would be another training. Here the pattern stays out of the configuration: files hold all ranks,
zero where masked, which is the same function. What the allocator has averaged so far lies beside
the Trainer's checkpoints, written before each of them.
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
    """Tell AdaLoRA how long training is, unless the recipe did.

    Args:
        config: The configuration; changed in place.
        num_steps: Optimizer steps in all.

    Raises:
        UsageError: No step is left between warming up and the end.
    """
    if config.total_step > num_steps * 1000:
        config.total_step = num_steps
    if config.tinit >= config.total_step - config.tfinal:
        raise UsageError(
            f"AdaLoRA has no step to take ranks away in: tinit={config.tinit}, "
            f"tfinal={config.tfinal}, and training takes {config.total_step} steps. Lower "
            "`method.tinit` or `method.tfinal`, or train longer."
        )


def orthogonality(model: Any) -> Tensor:
    """AdaLoRA's regularization, weighted: mean over factors of |P P' - I|, Frobenius norm."""
    config = model.peft_config[model.active_adapters[0]]
    norms = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.norm(product - torch.eye(len(product)).to(product)))
    weighted: Tensor = config.orth_reg_weight * torch.stack(norms).mean()
    return weighted


class AdaLoraCallback(TrainerCallback):
    """Masks the least important ranks at every step that AdaLoRA's schedule says."""

    def __init__(self) -> None:
        self._final: dict[str, list[bool]] | None = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Go on from what was averaged before a resume."""
        if state.global_step == 0:
            return
        path = _file(args, state.global_step)
        if not path.is_file():
            raise RunError(
                f"{path} is gone, and AdaLoRA cannot resume without it. Train anew under another "
                "`name`."
            )
        tensors = load_file(path)
        allocator = live["model"].base_model.rankallocator
        device = live["model"].device
        for part in _AVERAGES:
            own = {
                n.removeprefix(f"{part}/"): t
                for n, t in tensors.items()
                if n.startswith(f"{part}/")
            }
            setattr(allocator, part, {name: tensor.to(device) for name, tensor in own.items()})
        final = {n: t for n, t in tensors.items() if n.startswith(f"{_FINAL}/")}
        self._final = {
            name.removeprefix(f"{_FINAL}/"): mask.tolist() for name, mask in final.items()
        } or None

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Average importances and mask, while the step's gradients are there."""
        tuner = live["model"].base_model
        config = tuner.peft_config[tuner.trainable_adapter_name]
        allocator, last = tuner.rankallocator, config.total_step - config.tfinal
        if state.global_step < last:
            allocator.update_and_allocate(tuner.model, state.global_step)
        elif self._final is None:
            _, self._final = allocator.update_and_allocate(
                tuner.model, state.global_step, force_mask=True
            )
            allocator.reset_ipt()
        else:
            allocator.mask_using_rank_pattern(tuner.model, self._final)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Write what was averaged, before the Trainer saves."""
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
        """Write before a save that the evaluation may call for."""
        if args.save_strategy == "best":
            self._write(args, state, live["model"])

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Drop what belongs to checkpoints that the Trainer has dropped."""
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
            f"{part}/{name}": tensor.contiguous()
            for part in _AVERAGES
            for name, tensor in getattr(allocator, part).items()
        }
        for name, mask in (self._final or {}).items():
            tensors[f"{_FINAL}/{name}"] = torch.tensor(mask)
        path = _file(args, state.global_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(path)


def _file(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"adalora-{step}.safetensors"
