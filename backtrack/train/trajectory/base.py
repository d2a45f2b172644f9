"""The base of a model that is about to be trained, and the method it is trained by.

The base's own files are referred to where they are at hand and are what the live model holds.
Where they are not (a model built in memory, resized, or changed since it was loaded), its weights
are written out before training moves them, under the names a plain model has.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from safetensors import safe_open
from transformers import PreTrainedModel

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.records import BaseModelReference, Method
from backtrack.run.checkpoint_reader import base_folder, fingerprint
from backtrack.run.checkpoint_writer import weight_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from peft import PeftConfig
    from torch import Tensor

INITS_THAT_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
INITS_THAT_NEED_THEIR_START = ("pissa_niter", "corda", "lora_ga")
"""Of these, the ones whose initial factors no later loading finds again."""
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_NOT_SETTINGS = {"peft_type", "peft_version", "base_model_name_or_path", "inference_mode"}


def reference_to(name: str | Path, *, dtype: str = "auto", **fields: Any) -> BaseModelReference:
    """A reference to a base by folder or Hub name, with its fingerprint.

    Raises:
        RunError: There is no such base.
        CheckpointError: Its weights are no safetensors, or truncated.
    """
    folder = Path(name)
    model = str(folder.resolve()) if folder.is_dir() else str(name)
    reference = BaseModelReference.model_validate({"model": model, "dtype": dtype, **fields})
    return reference.model_copy(update={"fingerprint": fingerprint(base_folder(reference))})


def find_base(
    model: PreTrainedModel | PeftModel,
    *,
    is_untouched: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> BaseModelReference | None:
    """A reference to the files a live model was loaded from; none where the base must be written.

    Args:
        model: The model.
        is_untouched: No step has been taken, so a fully trained model still holds its base.
        weights: The model's own tensors in full, where it is sharded.
    """
    plain = plain_model(model)
    name = _base_name(model)
    if not name:
        return None
    try:
        reference = reference_to(
            name,
            dtype=main_dtype(plain),
            revision=None if Path(name).is_dir() else getattr(plain.config, "_commit_hash", None),
            trust_remote_code=type(plain).__module__.startswith("transformers_modules"),
        )
    except (RunError, CheckpointError):
        return None
    live = plain.state_dict() if weights is None else weights
    if is_untouched and plain is model and not _holds(live, base_folder(reference)):
        return None
    return reference


def write_base(
    model: PreTrainedModel | PeftModel,
    tokenizer: Any,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a live model's base, and its tokenizer if any, for stock transformers to load.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: Where to.
        weights: The model's own tensors in full, where it is sharded.

    Raises:
        UsageError: The adapter's start has changed the base already.
    """
    if isinstance(model, PeftModel):
        start = start_of(active_config(model))
        if start.startswith(INITS_THAT_MOVE_THE_BASE):
            raise UsageError(
                f"init_lora_weights={start!r} has changed the base already, and its files are not "
                "at hand. Name them: TrajectoryCallback(..., base=FOLDER)."
            )
    plain = plain_model(model)
    plain.save_pretrained(folder, state_dict=plain_weights(plain, weights))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def require_lasting_start(start: str) -> None:
    """Refuse adapters whose saved files do not give the trained model back on the original base.

    Args:
        start: `init_lora_weights` of the adapter; empty where it has none.

    Raises:
        UsageError: Names the start.
    """
    if start == "loftq":
        raise UsageError(
            "init_lora_weights='loftq' puts a quantized matrix in the base's place, and an "
            "adapter saved from it does not fit the original base. Train on a base that LoftQ "
            "saved, or start from `pissa` or the default."
        )


def require_start_without_data(start: str) -> None:
    """Refuse what a recipe cannot prepare: CorDA and LoRA-GA measure the model on data first.

    Raises:
        UsageError: Names the start.
    """
    require_lasting_start(start)
    if start in {"corda", "lora_ga"}:
        raise UsageError(
            f"init_lora_weights={start!r} is prepared on data before training, which a recipe "
            "does not do. Prepare it in a script of your own with TrajectoryCallback, or start "
            "from `pissa` or the default."
        )


def write_initial(
    model: PreTrainedModel | PeftModel, folder: Path, *, is_untouched: bool, is_sharded: bool
) -> bool:
    """Keep the adapter as it starts, where no later loading finds its factors again.

    Args:
        model: The live model.
        folder: Where to.
        is_untouched: Whether training has not begun.
        is_sharded: Whether its weights are spread over processes.

    Returns:
        Whether there was something to keep.

    Raises:
        UsageError: They must be kept and cannot be any more.
    """
    if not isinstance(model, PeftModel):
        return False
    start = start_of(active_config(model))
    if not start.startswith(INITS_THAT_NEED_THEIR_START):
        return False
    if is_sharded or not is_untouched:
        raise UsageError(
            f"init_lora_weights={start!r} took its initial factors out of the base, and they "
            "cannot be kept "
            + ("of sharded weights." if is_sharded else "once training has begun.")
            + " Save the adapter before the first step and convert it when saving "
            "(`path_initial_model_for_weight_conversion` of PEFT's save_pretrained)."
        )
    model.save_pretrained(str(folder))
    return True


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, out of PEFT's wrapper; adapters stay on its layers.

    Raises:
        UsageError: It is neither a transformers nor a PEFT model, or carries adapters on its own.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(plain, PreTrainedModel):
        raise UsageError(
            f"a trajectory needs a transformers or PEFT model, not {type(plain).__name__}."
        )
    if plain is model and getattr(model, "peft_config", None):
        raise UsageError(
            "the model carries adapters through `add_adapter`. Wrap it with "
            "`peft.get_peft_model(model, config)` instead."
        )
    return plain


def plain_weights(
    plain: PreTrainedModel, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights without adapters, by the names they have in a model that never had any.

    Args:
        plain: The model.
        weights: Its tensors in full, where it is sharded.
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


def method_of(model: PreTrainedModel | PeftModel) -> Method:
    """How a live model is trained."""
    if not isinstance(model, PeftModel):
        return Method(kind="full")
    config = active_config(model)
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    return Method(kind=kind, settings=changed_settings(config))


def active_config(model: PeftModel) -> PeftConfig:
    """The configuration of the one adapter that is trained.

    Raises:
        UsageError: Several adapters are active.
    """
    if len(model.active_adapters) != 1:
        names = ", ".join(model.active_adapters)
        raise UsageError(f"a trajectory is of one adapter, but these are active: {names}.")
    return model.peft_config[model.active_adapters[0]]


def start_of(config: PeftConfig) -> str:
    """How a LoRA adapter's weights begin; empty for other adapters."""
    return str(getattr(config, "init_lora_weights", ""))


def changed_settings(config: PeftConfig) -> dict[str, Any]:
    """The fields of a PEFT configuration that are not at their default, fit for JSON."""
    values: Mapping[str, Any] = config.to_dict()
    return {
        field.name: _jsonable(values[field.name])
        for field in dataclasses.fields(config)
        if field.name in values
        and field.name not in _NOT_SETTINGS
        and values[field.name] != _default(field)
    }


def is_vocabulary_resized(model: PeftModel, base: Path) -> bool:
    """Whether the vocabulary is not the base's, so that an adapter must carry its embedding."""
    written = json.loads((base / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    live = getattr(plain_model(model).config, "vocab_size", None)
    return written is not None and live is not None and written != live


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _jsonable(value: object) -> Any:
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case set() | frozenset():
            return sorted(_jsonable(member) for member in value)
        case list() | tuple():
            return [_jsonable(member) for member in value]
        case dict():
            return {str(key): _jsonable(member) for key, member in value.items()}
        case _:
            return str(value)


def _base_name(model: PreTrainedModel | PeftModel) -> str:
    named = active_config(model).base_model_name_or_path if isinstance(model, PeftModel) else None
    return str(named or plain_model(model).config.name_or_path or "")


def main_dtype(plain: PreTrainedModel) -> str:
    """The type most of the base's values are of; adapters may be kept in another."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in plain_weights(plain).values():
        counts[tensor.dtype] += tensor.numel()
    return _DTYPES.get(counts.most_common(1)[0][0], "auto")


def _holds(live: Mapping[str, Tensor], folder: Path) -> bool:
    """Whether live weights are those of the files, in the live type, wherever the names agree."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in set(file.keys()) & set(live):
                if not _same(file.get_tensor(name), live[name]):
                    return False
    return True


def _same(stored: Tensor, live: Tensor) -> bool:
    return stored.shape == live.shape and torch.equal(stored.to(live.dtype), live.cpu())
