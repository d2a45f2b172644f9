"""Find the base of a model that is about to be trained, or write it.

If the live model was loaded from files and still holds their weights, the run refers to those
files. Otherwise (a model built in memory, resized, or changed since it was loaded) the weights are
written before training changes them, under the names of a model without adapters.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from safetensors import safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.records import BaseModelReference
from backtrack.records.places import base_name
from backtrack.records.run import BITSANDBYTES_FIELDS
from backtrack.run.checkpoint_reader import base_folder, fingerprint
from backtrack.run.checkpoint_writer import weight_files
from backtrack.run.files import read_record
from backtrack.train.trajectory.initializations import BASE_CHANGING_INITIALIZATIONS
from backtrack.train.trajectory.live_method import active_config, initialization_of
from backtrack.train.trajectory.snapshot import full_shape, whole_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def reference_to(name: str | Path, *, dtype: str = "auto", **fields: Any) -> BaseModelReference:
    """Return a reference to a base by folder or Hub name, with its fingerprint.

    Raises:
        RunError: There is no such base.
        CheckpointError: Its weights are not safetensors, or are truncated.
    """
    facts = {"model": base_name(str(name)), "dtype": dtype, **fields}
    reference = BaseModelReference.model_validate(facts)
    if "quantization_config" in read_record(
        base_folder(reference) / "config.json", dict[str, Any]
    ):
        reference = reference.model_copy(update={"quantization": None})  # loaded as stored
    return reference.model_copy(update={"fingerprint": fingerprint(base_folder(reference))})


def named_base(model: PreTrainedModel | PeftModel) -> BaseModelReference | None:
    """Return a reference to the files a live model names as its own; None if there are none."""
    plain = plain_model(model)
    name = _base_name(model)
    if not name:
        return None
    try:
        return reference_to(
            name,
            **loading_of(plain),
            revision=None if Path(name).is_dir() else getattr(plain.config, "_commit_hash", None),
            trust_remote_code=type(plain).__module__.startswith("transformers_modules"),
        )
    except (RunError, CheckpointError):
        return None


def holds_weights(base: BaseModelReference | None, model: PreTrainedModel) -> bool:
    """Whether files hold a live model's weights in its dtype, for all names found in both.

    Args:
        base: The files; None on processes other than the main one, whose answer means nothing.
        model: The live model; if it is sharded, all processes must call this, and its tensors are
            gathered one at a time.
    """
    files = {} if base is None else _files_by_name(base_folder(base))
    is_same = True
    for name, tensor in whole_tensors(model):
        if is_same and name in files:
            with safe_open(files[name], framework="pt") as file:
                is_same = _are_equal(file.get_tensor(name), tensor)
    return is_same


def write_base(
    model: PreTrainedModel | PeftModel,
    tokenizer: Any,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a live model's base, and its tokenizer if any, for stock transformers to load.

    Args:
        model: The live model.
        tokenizer: Its tokenizer, or None.
        folder: The folder to write.
        weights: The model's tensors in full if it is sharded.

    Raises:
        UsageError: The adapter's initialization has already changed the base.
    """
    if isinstance(model, PeftModel):
        initialization = initialization_of(active_config(model))
        if initialization.startswith(BASE_CHANGING_INITIALIZATIONS):
            raise UsageError(
                f"init_lora_weights={initialization!r} has changed the base already, and the "
                "base's files are not known. Name them: `base=FOLDER`."
            )
    plain = plain_model(model)
    plain.save_pretrained(folder, state_dict=plain_weights(plain, weights))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside PEFT's wrapper; adapters stay on its layers.

    Raises:
        UsageError: It is neither a transformers nor a PEFT model, or its adapters were added by
            `add_adapter`.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(plain, PreTrainedModel):
        raise UsageError(
            f"a trajectory needs a transformers or PEFT model, not {type(plain).__name__}."
        )
    if plain is model and getattr(model, "peft_config", None):
        raise UsageError(
            "the model's adapters were added by `add_adapter`. Wrap it with "
            "`peft.get_peft_model(model, config)` instead."
        )
    return plain


def plain_weights(
    plain: PreTrainedModel, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the weights without adapters, by their names in a model without adapters.

    Args:
        plain: The transformers model; its layers may be wrapped by PEFT.
        weights: Its tensors in full if it is sharded.
    """
    inner_names: dict[str, str] = {}
    for name, module in plain.named_modules():
        if isinstance(module, BaseTunerLayer):
            inner_names[name] = "base_layer"
        elif isinstance(module, TrainableTokensWrapper):
            inner_names[name] = "token_adapter"
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inner_names[name] = "original_module"
    innermost_first = sorted(inner_names.items(), key=lambda item: -len(item[0]))
    live = plain.state_dict() if weights is None else weights
    named = ((_plain_name(key, innermost_first), t) for key, t in live.items())
    return {name: tensor for name, tensor in named if name is not None}


def _plain_name(name: str, wrappers: Iterable[tuple[str, str]]) -> str | None:
    for prefix, inner in wrappers:
        if name.startswith(f"{prefix}.{inner}."):
            name = f"{prefix}.{name.removeprefix(f'{prefix}.{inner}.')}"
        elif name.startswith(f"{prefix}."):
            return None
    return name


def is_vocabulary_resized(model: PeftModel, base: Path) -> bool:
    """Whether the vocabulary size differs from the base's, so adapters must save the embedding."""
    in_file = read_record(base / "config.json", dict[str, Any]).get("vocab_size")
    live = getattr(plain_model(model).config, "vocab_size", None)
    return in_file is not None and live is not None and in_file != live


def _base_name(model: PreTrainedModel | PeftModel) -> str:
    name = active_config(model).base_model_name_or_path if isinstance(model, PeftModel) else None
    return str(name or plain_model(model).config.name_or_path or "")


def loading_of(plain: PreTrainedModel) -> dict[str, Any]:
    """Return how a live model was loaded: fields `dtype` and `quantization` of a reference."""
    config = getattr(plain.config, "quantization_config", None)
    if not isinstance(config, BitsAndBytesConfig):
        return {"dtype": main_dtype(plain)}
    fields = config.to_dict().items()
    settings = {n: v for n, v in fields if n.startswith(BITSANDBYTES_FIELDS) and v is not None}
    return {"dtype": main_dtype(plain), "quantization": settings}


def main_dtype(plain: PreTrainedModel) -> str:
    """Return the dtype of most of the base's values; an adapter's dtype may differ.

    Of a quantized base it is the dtype of what is not quantized.
    """
    if getattr(plain, "is_quantized", False):
        return _DTYPES.get(plain.dtype, "auto")
    counts: Counter[torch.dtype] = Counter()
    for tensor in plain_weights(plain).values():
        counts[tensor.dtype] += full_shape(tensor).numel()
    return _DTYPES.get(counts.most_common(1)[0][0], "auto")


def _files_by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _are_equal(stored: Tensor, live: Tensor) -> bool:
    return stored.shape == live.shape and torch.equal(stored.to(live.dtype), live.cpu())
