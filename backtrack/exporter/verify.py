"""Check that an export, as stock libraries load it, is the model that was measured.

No second model is loaded. A whole model is compared with the placed one tensor by tensor, and by
its configuration: the same class, configuration and bits are the same model. An adapter is loaded
by stock PEFT onto the placed model's own base, and gives its logits. Only a whole model whose
files hold other tensors than the model (stacked experts that transformers splits) is loaded again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backtrack.errors import ExportError
from backtrack.path.adapters.tuners import tuner_of
from backtrack.path.curves import rounding
from backtrack.path.models.loading import differs_by, load_adapter, load_model, probe, read_config
from backtrack.point import Point
from backtrack.run.checkpoint_reader import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from backtrack.path.placement import Placement

_INCIDENTAL = {"_name_or_path", "architectures", "transformers_version"}
"""Fields of a configuration that say where a model is from, not what it computes."""


def verify_model(folder: Path, placement: Placement, *, trust_remote_code: bool) -> None:
    """Check a whole model.

    Args:
        folder: The export.
        placement: The placed model that was written; it stays as it is.
        trust_remote_code: Whether code from the folder may run.

    Raises:
        ExportError: The export is another model.
    """
    if not _is_stored(placement.model, folder, trust_remote_code=trust_remote_code):
        device = placement.model.device
        loaded = load_model(folder, "auto", device, trust_remote_code=trust_remote_code)
        _require_logits(loaded, probe(placement.model), 0.0, folder)


def verify_adapter(folder: Path, placement: Placement) -> None:
    """Check an adapter.

    Args:
        folder: The export.
        placement: The placed model that was written; its adapter is taken off, so it is of no use
            afterwards.

    Raises:
        ExportError: Loaded by stock PEFT, the adapter gives other logits.
    """
    expected, tolerance = probe(placement.model), _tolerance(placement.model)
    placement.place(Point.base())  # so that parameters trained beside the adapter are the base's
    loaded = load_adapter(placement.model.unload(), folder)
    _require_logits(loaded, expected, tolerance, folder)


def _is_stored(model: Any, folder: Path, *, trust_remote_code: bool) -> bool:
    """Whether a folder holds the model's configuration and its tensors, bit for bit."""
    written = read_config(folder, trust_remote_code=trust_remote_code)
    if _decisive(written) != _decisive(model.config):
        return False
    live = model.state_dict()
    unseen = dict(live)
    for name, tensor in read_tensors(folder).items():
        if name not in live or not _is_loaded_as(tensor, live[name], written.dtype):
            return False
        del unseen[name]
    stored = {live[name].data_ptr() for name in live.keys() - unseen.keys()}
    return all(tensor.data_ptr() in stored for tensor in unseen.values())  # tied to one stored


def _decisive(config: Any) -> Mapping[str, Any]:
    return {name: v for name, v in config.to_dict().items() if name not in _INCIDENTAL}


def _is_loaded_as(stored: Tensor, live: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether transformers, which loads all floats in one type, loads a tensor as the live one."""
    if stored.dtype != live.dtype or (stored.is_floating_point() and stored.dtype != dtype):
        return False
    return torch.equal(stored.to(live.device), live)


def _require_logits(loaded: Any, expected: Tensor, tolerance: float, folder: Path) -> None:
    difference = differs_by(loaded, expected, tolerance)
    if difference:
        raise ExportError(
            f"{folder}: loaded again, its logits differ by up to {difference:.3g} from the "
            "measured model's. Nothing was exported. Try the other form with --as."
        )


def _tolerance(model: Any) -> float:
    """Largest allowed difference from the placed model's logits, relative to the largest logit.

    It is 0 unless a LoRA's scalings were multiplied into its factors, or a layer that is disabled
    at alpha 0 (Householder vectors) is written as vectors that cancel.
    """
    config = model.peft_config["default"]
    has_patterns = getattr(config, "rank_pattern", None) or getattr(config, "alpha_pattern", None)
    is_turned = "turn" in tuner_of(config).rules.values()
    return rounding(model.dtype) if has_patterns or is_turned else 0.0
