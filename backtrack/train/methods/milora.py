"""MiLoRA: begin LoRA in the base's least singular directions, and leave the base alone.

MiLoRA (Wang et al., arXiv 2406.09044) takes the r least singular values of W0 for its factors,
`scaling B0 A0`, and freezes the rest: the trained weight is W0 + scaling (B A - B0 A0). PEFT has
no such initialization, and one that moved the base would need the initial factors to walk back.
So the adapter has twice the rank here: its first half, [A; B], is trained, and its second,
[A0; -B0], stays as it is. At the start the halves cancel; scaling all of B walks exactly back to
W0, and stock PEFT loads what is saved as a plain LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import UsageError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments


def double_rank(config: LoraConfig) -> LoraConfig:
    """The configuration with room for both halves and the same scaling; changed in place."""
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.rank_pattern = {name: 2 * r for name, r in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: 2 * a for name, a in (config.alpha_pattern or {}).items()}
    return config


class MiloraCallback(TrainerCallback):
    """Keeps the second half of every factor where it began, whatever the optimizer does."""

    def __init__(self, model: Any) -> None:
        """Begin in the least directions.

        Args:
            model: With a LoRA adapter that nothing has trained, of the `doubled` configuration.

        Raises:
            UsageError: It adapts something else than plain linear layers.
        """
        self._halves: list[tuple[Tensor, tuple[slice, ...], Tensor]] = []
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                self._begin(name, layer, model.active_adapters[0])

    @torch.no_grad()
    def _begin(self, name: str, layer: Any, adapter: str) -> None:
        base = layer.get_base_layer()
        if not isinstance(base, torch.nn.Linear) or not base.weight.is_floating_point():
            raise UsageError(
                f"MiLoRA needs the singular values of linear layers in full precision, and {name} "
                f"is a {type(base).__name__}. Leave it out of `method.target_modules`."
            )
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        rank = down.shape[0] // 2
        if rank > min(base.weight.shape):
            raise UsageError(
                f"{name} has only {min(base.weight.shape)} singular values for a rank of {rank}. "
                "Lower `method.r`, or the layer's by `method.rank_pattern`."
            )
        left, values, right = torch.linalg.svd(base.weight.float(), full_matrices=False)
        root = (values[-rank:] / layer.scaling[adapter]).sqrt()
        first_down = (root[:, None] * right[-rank:]).to(down)
        first_up = (left[:, -rank:] * root).to(up)
        down.copy_(torch.cat([first_down, first_down]))
        up.copy_(torch.cat([first_up, -first_up], dim=1))
        for factor, half in ((down, (slice(rank, None),)), (up, (slice(None), slice(rank, None)))):
            self._halves.append((factor, half, factor[half].clone()))
            # Its gradient must not weigh in the norm that gradients are clipped by.
            factor.register_hook(lambda gradient, half=half: _without(gradient, half))

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Go on from the half that a resumed training began with."""
        if state.global_step > 0:
            self._halves = [(f, half, f[half].detach().clone()) for f, half, _ in self._halves]

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Undo weight decay."""
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        for factor, half, start in self._halves:
            factor[half] = start.to(factor)


def _without(gradient: Tensor, half: tuple[slice, ...]) -> Tensor:
    gradient = gradient.clone()
    gradient[half] = 0
    return gradient
