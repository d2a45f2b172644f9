"""Open a run's adapter on its base: the last checkpoint loaded, the others at hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from backtrack.errors import PlacementError
from backtrack.path.adapters.handles import plain_name
from backtrack.path.adapters.rewritten_base import (
    is_factor,
    read_initial,
    rewrote_base,
    uniform_lora,
    without_initial,
)
from backtrack.path.curves import rounding
from backtrack.path.models.embeddings import fit_vocabulary, num_tokens, overwritten
from backtrack.path.models.loading import (
    load_adapter,
    load_base,
    probe,
    read_adapter_config,
)
from backtrack.run.checkpoint_reader import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peft import PeftConfig, PeftModel
    from torch import Tensor

    from backtrack.run.directory import Run


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter on its base.

    Attributes:
        run: The run.
        model: With the last checkpoint loaded, what was trained requiring gradients.
        config: The adapter's configuration, of the plain LoRA where it was made one.
        originals: The base's own values of parameters that the adapter overwrites, by name.
        vocabulary: Tokens of the bare base.
        probe_base: Logits of the bare base.
        probe_final: Logits of the last checkpoint as stock libraries load it.
        tolerance: How far `model` may be from those, as a share of the largest logit.
        initial: Initial factors that the base was rewritten by; none where it was not.
        saved_config: The configuration as it was saved.
    """

    run: Run
    model: PeftModel
    config: PeftConfig
    originals: Mapping[str, Tensor]
    vocabulary: int
    probe_base: Tensor
    probe_final: Tensor
    tolerance: float
    saved_config: PeftConfig
    initial: Mapping[str, Tensor] | None = None
    _base: dict[str, Tensor] = field(default_factory=dict)

    def read(self, step: int) -> dict[str, Tensor]:
        """Tensors of a checkpoint, by their names in a file for this adapter.

        Raises:
            CheckpointError: Damaged, or not finite.
            PlacementError: Its configuration is not the last checkpoint's.
        """
        _require_same_method(self.run.folder(step), self.saved_config)
        tensors = read_checkpoint(self.run, step)
        if self.initial is None:
            return tensors
        return _plain(self.saved_config, tensors, self.initial)[1]

    def base_value(self, name: str) -> Tensor:
        """The base's own tensor of this name in the plain model."""
        if not self._base:
            every = self.model.named_parameters(remove_duplicate=False)
            self._base.update(
                {plain_name(n): p for n, p in every if "modules_to_save" not in n.split(".")}
            )
            self._base.update(self.originals)
        return self._base[name].detach()


def open_adapter(run: Run, device: torch.device) -> OpenedAdapter:
    """A run's last checkpoint on its base.

    Raises:
        PlacementError: The method has no path, the adapter does not fit the base, or the base was
            rewritten in a way that cannot be undone from what is there.
        CheckpointError: Damaged, or not finite.
        RunError: The base is not the run's.
    """
    step = run.final.step
    folder = run.folder(step)
    config = read_adapter_config(folder)
    if rewrote_base(config, folder):
        return _open_rewritten(run, config, device)
    if getattr(config, "init_lora_weights", True) == "loftq" and not torch.cuda.is_available():
        raise PlacementError(
            f"{folder}: loading a LoftQ adapter quantizes the base again, which PEFT does on a "
            "GPU only. Open the run on a machine that has one."
        )
    tensors = read_checkpoint(run, step)
    base = load_base(run.base, device)
    vocabulary, probe_base = num_tokens(base), probe(base)
    fit_vocabulary(base, {plain_name(name): tensor for name, tensor in tensors.items()})
    originals = _clones(base, overwritten(base, tensors))
    model = load_adapter(base, folder)
    return OpenedAdapter(
        run=run,
        model=model,
        config=config,
        originals=_not_wrapped(originals, model),
        vocabulary=vocabulary,
        probe_base=probe_base,
        probe_final=_stock_probe(model, vocabulary),
        tolerance=0.0,
        saved_config=config,
    )


def _clones(base: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    parameters = dict(base.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def _not_wrapped(originals: dict[str, Tensor], model: PeftModel) -> dict[str, Tensor]:
    """Without what `modules_to_save` keeps an original of."""
    names = [name for name, _ in model.named_parameters() if "modules_to_save" in name.split(".")]
    wrapped = {plain_name(name) for name in names}
    return {name: tensor for name, tensor in originals.items() if name not in wrapped}


def _stock_probe(model: PeftModel, vocabulary: int) -> Tensor:
    """Logits as loaded. Some tuners write into their own tensors in a forward pass: put back."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    logits = probe(model, vocabulary)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.copy_(kept[name])
    return logits


def _open_rewritten(run: Run, config: PeftConfig, device: torch.device) -> OpenedAdapter:
    """As plain LoRA of twice the rank on the original base."""
    step = run.final.step
    folder = run.folder(step)
    tensors = read_checkpoint(run, step)
    initial = read_initial(run, config, folder)
    probe_final, factors = _probe_rewritten(run, config, tensors, initial, device)
    plain_config, plain_tensors = _plain(config, tensors, factors)
    base = load_base(run.base, device)
    vocabulary, probe_base = num_tokens(base), probe(base)
    originals = _clones(base, overwritten(base, tensors))
    plain_config.inference_mode = False
    model = get_peft_model(base, plain_config)
    set_peft_model_state_dict(model, plain_tensors)
    return OpenedAdapter(
        run=run,
        model=model.eval(),
        config=plain_config,
        originals=_not_wrapped(originals, model),
        vocabulary=vocabulary,
        probe_base=probe_base,
        probe_final=probe_final,
        tolerance=rounding(base.dtype),
        saved_config=config,
        initial=factors,
    )


def _plain(
    config: PeftConfig, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    lora: Any = config
    return uniform_lora(lora, without_initial(lora, tensors, initial), is_scaled=True)


@torch.no_grad()
def _probe_rewritten(
    run: Run,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    initial: Mapping[str, Tensor] | None,
    device: torch.device,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Logits of the adapter on the base it was trained on, and its initial factors."""
    own: Any = copy.deepcopy(config)
    if initial is not None:
        own.init_lora_weights = True
        own.corda_config = own.lora_ga_config = None
    model = get_peft_model(load_base(run.base, device), own)
    if initial is None:
        state: dict[str, Tensor] = get_peft_model_state_dict(model)
        initial = {n: t.detach().cpu().clone() for n, t in state.items() if is_factor(n)}
    else:
        set_peft_model_state_dict(model, dict(initial))
        _take_out(model)
    set_peft_model_state_dict(model, dict(tensors))
    return probe(model.eval()), initial


def _take_out(model: PeftModel) -> None:
    """Subtract every layer's `scaling B A` from its base, as these initializations do."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        weight.copy_(weight.float() - layer.get_delta_weight(model.active_adapter).float())


def _require_same_method(folder: Path, config: PeftConfig) -> None:
    ours, theirs = config.to_dict(), read_adapter_config(folder).to_dict()
    differing = [key for key in ours if ours[key] != theirs.get(key) and key != "inference_mode"]
    if differing:
        raise PlacementError(
            f"{folder}: its {differing[0]} is {theirs.get(differing[0])!r}, the last "
            f"checkpoint's is {ours[differing[0]]!r}. A run's checkpoints share one adapter "
            "configuration."
        )
