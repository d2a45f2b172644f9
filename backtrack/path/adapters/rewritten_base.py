"""Convert adapters whose initialization rewrote the base into plain LoRA on the original base.

PiSSA, OLoRA, CorDA and LoRA-GA start from factors A0, B0 and subtract `scaling B0 A0` from the
base, so that the trained model is `W0 + scaling (B A - B0 A0)`: a plain LoRA of twice the rank on
W0, which is W0 bit for bit at alpha 0. (Scaling B of the adapter as saved leads to the residual
base instead, 4 to 5 off in the logits.) Sources of the initial factors:

    saved as            the initial factors
    pissa, olora        computed again from W0, as stock PEFT does when it loads
    pissa_niter_*,      the adapter as saved before the first step: by our callback in `initial/`,
    corda, lora_ga      named by `backtrack adopt --initial`, or in `pissa_init/` beside the
                        checkpoint
    LLaMA-Factory       `pissa_backup/` belongs to the residual base and needs `pissa_init/`;
                        `pissa_converted/` is already a plain LoRA
    converted by PEFT   not needed: already a plain LoRA

LoftQ and KaSA replace the base by something other than W0 minus a product, which no adapter on W0
can undo: they move on the line from W0.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import get_pattern_key

from backtrack.errors import PlacementError
from backtrack.formatting import command
from backtrack.records.adapter_config import BASE_PRESERVING
from backtrack.run.checkpoint_reader import read_tensors, shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import INITIAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import LoraConfig, PeftConfig
    from torch import Tensor

    from backtrack.run.directory import Run

REPRODUCIBLE = frozenset({"pissa", "olora"})
"""Initializations that give the same factors when computed again."""

_DOWN = ("lora_A", "lora_embedding_A")
_UP = ("lora_B", "lora_embedding_B")


def initial_folder(run: Run, folder: Path) -> Path | None:
    """Folder with the initial factors of a checkpoint; None if there is none."""
    named = [Path(run.manifest.initial)] if run.manifest.initial else []
    default = [run.path / INITIAL, folder / "pissa_init", folder.parent / "pissa_init"]
    for path in [*named, *default]:
        if is_adapter(path) and _has_shapes_of(path, folder):
            return path
    return None


def _has_shapes_of(initial: Path, folder: Path) -> bool:
    """Whether ranks agree; a converted adapter has twice the initial adapter's rank."""
    ours, theirs = shapes(folder), shapes(initial)
    return all(ours[name] == theirs.get(name) for name in ours if is_factor(name))


def rewrote_base(config: PeftConfig, folder: Path) -> bool:
    """Whether a checkpoint as saved belongs to another base than the original."""
    init = getattr(config, "init_lora_weights", True)
    by_name = isinstance(init, str) and init not in BASE_PRESERVING
    return by_name or folder.name == "pissa_backup"


def read_initial(run: Run, config: PeftConfig, folder: Path) -> dict[str, Tensor] | None:
    """Read the initial factors from files; None if they can be computed again.

    Raises:
        PlacementError: They are needed and missing.
    """
    source = initial_folder(run, folder)
    if source is not None:
        return {name: t for name, t in read_tensors(source).items() if is_factor(name)}
    init = getattr(config, "init_lora_weights", True)
    if init in REPRODUCIBLE:
        return None
    adopt = command("adopt", run.manifest.source or folder.parent, "--initial", "FOLDER")
    what = "pissa_backup" if folder.name == "pissa_backup" else f"init_lora_weights={init!r}"
    raise PlacementError(
        f"{folder}: {what} subtracted its initial factors from the base, and they cannot be "
        "computed again from the base alone, so no strength would lead back to it. Needed is the "
        "adapter as saved before the first step, a folder with adapter_config.json and "
        f"adapter_model.safetensors: name it with {adopt}, or copy it "
        f"to {folder.parent / 'pissa_init'}. Or convert the adapter when saving it "
        "(`path_initial_model_for_weight_conversion` of PEFT's save_pretrained) and adopt that."
    )


def without_initial(
    config: LoraConfig, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Factors of `scaling (B A - B0 A0)`, of twice the rank, with the scaling in B."""
    plain = dict(tensors)
    for name, start in initial.items():
        scaling = scaling_of(config, name, initial)
        trained = tensors[name].float()
        if _part(name, _DOWN):
            plain[name] = torch.cat([trained, start.float()], dim=0)
        elif not name.endswith(".bias"):
            plain[name] = scaling * torch.cat([trained, -start.float()], dim=1)
        else:
            plain[name] = scaling * trained
    return plain


def scaling_of(config: LoraConfig, name: str, tensors: Mapping[str, Tensor]) -> float:
    """The factor by which PEFT multiplies `B A`, in the layer of the tensor `name`."""
    rank = _rank(name, tensors)
    # PEFT matches names in the base, and `^model...` from their beginning.
    module = name.removeprefix("base_model.model.").partition(".lora_")[0]
    alphas: dict[str, float] = dict(config.alpha_pattern or {})
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def uniform_lora(
    config: LoraConfig, tensors: Mapping[str, Tensor], *, is_scaled: bool = False
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same adapter with one rank and scaling 1 in every layer, for readers without patterns.

    Smaller ranks are padded with zeros; each layer's own scaling is multiplied into its B.

    Args:
        config: The adapter's configuration.
        tensors: The adapter's tensors, by their names in its file.
        is_scaled: Whether B already contains the scaling.
    """
    names = [name for name in tensors if is_factor(name)]
    rank = max(_rank(name, tensors) for name in names)
    plain = dict(tensors)
    for name in names:
        missing = rank - _rank(name, tensors)
        scaling = 1.0 if is_scaled else scaling_of(config, name, tensors)
        if _part(name, _DOWN):
            plain[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, missing))
        elif name.endswith(".bias"):
            plain[name] = scaling * tensors[name]
        else:
            plain[name] = torch.nn.functional.pad(scaling * tensors[name], (0, missing))
    uniform: Any = copy.deepcopy(config)
    uniform.r = uniform.lora_alpha = rank
    uniform.rank_pattern, uniform.alpha_pattern = {}, {}
    uniform.use_rslora, uniform.init_lora_weights = False, True
    for key in ("corda_config", "lora_ga_config", "eva_config"):
        setattr(uniform, key, None)
    return uniform, plain


def is_factor(name: str) -> bool:
    """Whether the name in an adapter's file is one of LoRA's factors."""
    return _part(name, _DOWN) or _part(name, _UP)


def _part(name: str, parts: tuple[str, ...]) -> bool:
    return bool(set(parts) & set(name.split(".")))


def _rank(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Rank of the layer that a factor belongs to."""
    for up, down in zip(_UP, _DOWN, strict=True):
        if up in name.split("."):
            module, _, rest = name.partition(f".{up}")
            name = f"{module}.{down}" + (".weight" if rest.endswith(".bias") else rest)
    return tensors[name].shape[0]
