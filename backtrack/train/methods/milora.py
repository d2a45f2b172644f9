"""MiLoRA: initialize LoRA with the base's smallest singular components, without changing the base.

MiLoRA (Wang et al., arXiv 2406.09044) initializes its factors by the r smallest singular values of
W0, `scaling B0 A0`, and freezes the rest: the trained weight is W0 + scaling (B A - B0 A0). PEFT
has no such initialization, and one that changed the base would need the initial factors to return
to it. So the adapter has twice the rank here: the first half, [A; B], is trained, and the second,
[A0; -B0], is frozen. Initially the halves cancel. Scaling all of B to zero gives exactly W0, and
stock PEFT loads the saved adapter as a plain LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.train.methods.initial_factors import base_weight, singular_factors

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments


def double_rank(config: LoraConfig) -> LoraConfig:
    """Double the ranks of a configuration in place, keeping the scaling."""
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.rank_pattern = {name: 2 * r for name, r in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: 2 * a for name, a in (config.alpha_pattern or {}).items()}
    return config


class MiloraCallback(TrainerCallback):
    """Initializes the adapter, and freezes the second half of every factor."""

    def __init__(self, model: Any) -> None:
        """Initialize the adapter.

        Args:
            model: A PEFT model with an untrained LoRA adapter of a `double_rank` configuration.

        Raises:
            UsageError: It adapts layers other than plain linear ones.
        """
        self._frozen: list[tuple[Tensor, tuple[slice, ...], Tensor]] = []
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                self._initialize(name, layer, model.active_adapters[0])

    @torch.no_grad()
    def _initialize(self, name: str, layer: Any, adapter: str) -> None:
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        rank = down.shape[0] // 2
        factors = singular_factors(
            base_weight(name, layer), rank, layer.scaling[adapter], name, is_smallest=True
        )
        initial_down, initial_up = (f.to(down.dtype) for f in factors)
        down.copy_(torch.cat([initial_down, initial_down]))
        up.copy_(torch.cat([initial_up, -initial_up], dim=1))
        for factor, half in ((down, (slice(rank, None),)), (up, (slice(None), slice(rank, None)))):
            self._frozen.append((factor, half, factor[half].clone()))
            # A frozen half's gradient must not count in the norm used for gradient clipping.
            factor.register_hook(lambda gradient, half=half: _zeroed(gradient, half))

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """If training resumes, take the frozen halves from the loaded adapter."""
        if state.global_step > 0:
            self._frozen = [(f, half, f[half].detach().clone()) for f, half, _ in self._frozen]

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Undo weight decay of the frozen halves."""
        self._restore()

    @torch.no_grad()
    def _restore(self) -> None:
        for factor, half, initial in self._frozen:
            factor[half] = initial.to(factor)


def _zeroed(gradient: Tensor, half: tuple[slice, ...]) -> Tensor:
    gradient = gradient.clone()
    gradient[half] = 0
    return gradient
