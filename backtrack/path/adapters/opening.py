"""Load a run's adapter on its base with the last checkpoint, and read the other checkpoints."""

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
from backtrack.path.models.embeddings import (
    fit_vocabulary,
    overwritten_names,
    trained_rows,
    vocabulary_size,
)
from backtrack.path.models.loading import (
    load_adapter,
    load_base,
    probe,
    read_adapter_config,
    require_all_used,
    without_copies,
)
from backtrack.records.adapter_config import first_difference
from backtrack.run.adoption.fitting import require_same_tensors
from backtrack.run.checkpoint_reader import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peft import PeftConfig, PeftModel
    from torch import Tensor

    from backtrack.run.directory import Run
    from backtrack.run.foreign.formats import Shapes


@dataclass(frozen=True)
class OpenedAdapter:
    """A run's adapter on its base.

    Attributes:
        run: The run.
        model: The model with the last checkpoint loaded; trained tensors require gradients.
        config: The adapter's configuration; that of the plain LoRA if it was converted to one.
        originals: The base's own values of parameters that the adapter overwrites, by name.
        vocabulary: Number of tokens that the bare base and the checkpoint both have.
        is_resized: Whether training gave the vocabulary other rows than the base has.
        probe_base: Probe logits of the bare base, [2, 24, vocabulary].
        probe_final: Probe logits of the last checkpoint as stock libraries load it.
        tolerance: Largest allowed difference of `model` from `probe_final`, relative to the
            largest logit.
        saved_config: The configuration as saved.
        shapes: Shapes of the last checkpoint's tensors as saved, by name.
        initial: Initial factors that were subtracted from the base; None if the base was left
            alone.
    """

    run: Run
    model: PeftModel
    config: PeftConfig
    originals: Mapping[str, Tensor]
    vocabulary: int
    is_resized: bool
    probe_base: Tensor
    probe_final: Tensor
    tolerance: float
    saved_config: PeftConfig
    shapes: Shapes
    initial: Mapping[str, Tensor] | None = None
    _base: dict[str, Tensor] = field(default_factory=dict)

    def read(self, step: int) -> dict[str, Tensor]:
        """Read a checkpoint's tensors, by their names in an adapter file of `config`.

        Raises:
            CheckpointError: Damaged, not finite, or other tensors than the last checkpoint's.
            PlacementError: Its configuration gives another path than the last checkpoint's.
        """
        _require_same_config(self.run.folder(step), self.saved_config)
        tensors = without_copies(read_checkpoint(self.run, step))
        require_same_tensors(_shapes(tensors), self.shapes, self.run.folder(step))
        if self.initial is None:
            return tensors
        return _as_plain_lora(self.saved_config, tensors, self.initial)[1]

    def base_value(self, name: str) -> Tensor:
        """The base's own tensor of this name in the plain model."""
        if not self._base:
            parameters = self.model.named_parameters(remove_duplicate=False)
            self._base.update(
                {plain_name(n): p for n, p in parameters if "modules_to_save" not in n.split(".")}
            )
            self._base.update(self.originals)
        return self._base[name].detach()


def open_adapter(run: Run, device: torch.device) -> OpenedAdapter:
    """Load a run's last checkpoint on its base.

    Raises:
        PlacementError: The method has no path, the adapter does not fit the base, or its
            initialization rewrote the base and the initial factors are missing.
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
            f"{folder}: loading a LoftQ adapter quantizes the base again, which PEFT does only on "
            "a GPU. Use the run on a machine that has one."
        )
    tensors = without_copies(read_checkpoint(run, step))
    base = load_base(run.base, device)
    plain = {plain_name(name): tensor for name, tensor in tensors.items()}
    rows = vocabulary_size(base), trained_rows(base, plain)
    probe_base = probe(base, min(rows))
    fit_vocabulary(base, plain)
    originals = _clones(base, overwritten_names(base, tensors))
    model = load_adapter(base, folder)
    return OpenedAdapter(
        run=run,
        model=model,
        config=config,
        originals=_without_saved_modules(originals, model),
        vocabulary=min(rows),
        is_resized=len(set(rows)) > 1,
        probe_base=probe_base,
        probe_final=_stock_probe(model, min(rows)),
        tolerance=0.0,
        saved_config=config,
        shapes=_shapes(tensors),
    )


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _clones(base: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    parameters = dict(base.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def _without_saved_modules(originals: dict[str, Tensor], model: PeftModel) -> dict[str, Tensor]:
    """Drop parameters of `modules_to_save`, of which PEFT itself keeps the original."""
    names = [name for name, _ in model.named_parameters() if "modules_to_save" in name.split(".")]
    wrapped = {plain_name(name) for name in names}
    return {name: tensor for name, tensor in originals.items() if name not in wrapped}


def _stock_probe(model: PeftModel, vocabulary: int) -> Tensor:
    """Probe logits as loaded for inference, after which trained tensors require gradients again.

    Mamba computes otherwise with weights that require gradients. Tensors that a tuner's forward
    pass overwrites are restored.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in trained]
    model.requires_grad_(requires_grad=False)
    logits = probe(model, vocabulary)
    for parameter, value in zip(trained, saved, strict=True):
        parameter.copy_(value)
        parameter.requires_grad_()
    return logits


def _open_rewritten(run: Run, config: PeftConfig, device: torch.device) -> OpenedAdapter:
    """Load an adapter that rewrote its base as plain LoRA of twice the rank on the original."""
    step = run.final.step
    folder = run.folder(step)
    tensors = read_checkpoint(run, step)
    initial = read_initial(run, config, folder)
    probe_final, factors = _probe_rewritten(run, config, tensors, initial, device)
    plain_config, plain_tensors = _as_plain_lora(config, tensors, factors)
    base = load_base(run.base, device)
    vocabulary, probe_base = vocabulary_size(base), probe(base)
    originals = _clones(base, overwritten_names(base, tensors))
    plain_config.inference_mode = False
    model = get_peft_model(base, plain_config)
    set_peft_model_state_dict(model, plain_tensors)
    require_all_used(model, plain_tensors, folder)
    return OpenedAdapter(
        run=run,
        model=model.eval(),
        config=plain_config,
        originals=_without_saved_modules(originals, model),
        vocabulary=vocabulary,
        is_resized=False,
        probe_base=probe_base,
        probe_final=probe_final,
        tolerance=rounding(base.dtype),
        saved_config=config,
        shapes=_shapes(tensors),
        initial=factors,
    )


def _as_plain_lora(
    config: PeftConfig, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and tensors of the same adapter as plain LoRA on the original base."""
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
    """Probe logits of the adapter on the base that it was trained on, and its initial factors."""
    trained_config: Any = copy.deepcopy(config)
    if initial is not None:
        trained_config.init_lora_weights = True
        trained_config.corda_config = trained_config.lora_ga_config = None
    model = get_peft_model(load_base(run.base, device), trained_config)
    if initial is None:
        state: dict[str, Tensor] = get_peft_model_state_dict(model)
        initial = {n: t.detach().cpu().clone() for n, t in state.items() if is_factor(n)}
    else:
        set_peft_model_state_dict(model, dict(initial))
        _subtract_products(model)
    set_peft_model_state_dict(model, dict(tensors))
    return probe(model.eval()), initial


def _subtract_products(model: PeftModel) -> None:
    """Subtract every layer's `scaling B A` from its base, as these initializations do."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        weight.copy_(weight.float() - layer.get_delta_weight(model.active_adapter).float())


def _require_same_config(folder: Path, config: PeftConfig) -> None:
    difference = first_difference(config.to_dict(), read_adapter_config(folder).to_dict())
    if difference is not None:
        name, ours, theirs = difference
        raise PlacementError(
            f"{folder}: {name} is {theirs!r}, but {ours!r} in the last checkpoint. All "
            f"checkpoints of a run must have the same {name}: adopt those that share it as a run "
            "of their own."
        )
