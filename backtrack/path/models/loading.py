"""Load base models, tokenizers and adapters, and name the cause if one does not load."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from backtrack.errors import PlacementError
from backtrack.path.adapters.handles import plain_name
from backtrack.path.adapters.tuners import tuner_of
from backtrack.path.models.embeddings import fit_vocabulary, vocabulary_size
from backtrack.run.checkpoint_reader import base_folder, has_stock_names, read_tensors, verify_base
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.records import BaseModelReference

PROBE_SHAPE = (2, 24)


def pick_device(device: str) -> torch.device:
    """The named device; `auto` is the first GPU, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(reference: BaseModelReference, device: torch.device) -> PreTrainedModel:
    """Load the base in evaluation mode, after checking that the run was trained on it.

    Raises:
        RunError: Not found, or not the base that the run was trained on.
        PlacementError: transformers cannot load it.
    """
    folder = verify_base(reference)
    return load_model(
        folder,
        reference.dtype,
        device,
        trust_remote_code=reference.trust_remote_code,
        quantization=reference.quantization,
    )


def is_quantized(reference: BaseModelReference) -> bool:
    """Whether a base is quantized, by request (`quantization`) or in its own files."""
    if reference.quantization is not None:
        return True
    path = base_folder(reference) / "config.json"
    return path.is_file() and "quantization_config" in read_record(path, dict[str, Any])


def load_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    quantization: Literal["4bit", "8bit"] | None = None,
) -> PreTrainedModel:
    """Load a causal language model from a folder of safetensors, in evaluation mode.

    Args:
        folder: Folder with config.json and weights.
        dtype: `auto` is the type of the files.
        device: Device of the model.
        trust_remote_code: Whether code from the folder may run.
        quantization: How bitsandbytes quantizes the model; None loads the files as they are.

    Raises:
        PlacementError: transformers cannot load it, or its files lack weights of the model.
    """
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **quantization_options(quantization, device),
        )
    except Exception as error:  # transformers raises many unrelated types
        raise PlacementError(
            f"{folder} does not load as a causal language model: {_first_line(error)}"
        ) from error
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model, about = loaded
    _require_complete(about["missing_keys"], folder)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # On some CPUs bitsandbytes repacks the weights for bf16 at the first forward pass in
            # evaluation mode: logits would depend (by 0.002) on what the model was used for.
            module.support_avx512bf16_for_cpu = False
    ready: PreTrainedModel = (model if quantization else model.to(device)).eval()
    return ready.requires_grad_(requires_grad=False)


def _require_complete(missing: Iterable[str], folder: Path) -> None:
    """Stock transformers begins weights that are not in the files at random values."""
    names = sorted(missing)
    if names:
        raise PlacementError(
            f"{folder} lacks {len(names)} weights of the model that its config.json describes, "
            f"first {names[0]!r}: transformers would put random values in their place."
        )


def quantization_options(
    quantization: Literal["4bit", "8bit"] | None, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained`: NF4 with double quantization as in QLoRA, or LLM.int8."""
    if quantization is None:
        return {}
    fields: dict[str, Any] = (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        if quantization == "4bit"
        else {"load_in_8bit": True}
    )
    config = BitsAndBytesConfig(**fields)  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": device}}


def moving_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model that training moves: parameters, and buffers that are saved.

    Each tied tensor is there once. Buffers of integers count or index; they do not move.
    """
    saved = model.state_dict()
    buffers = {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


def load_tokenizer(reference: BaseModelReference, checkpoint: Path | None = None) -> Any:
    """Load the tokenizer saved with a checkpoint if there is one, else the base's.

    Raises:
        PlacementError: Neither has a tokenizer that loads.
    """
    folder: Any = (
        checkpoint if checkpoint and (checkpoint / "tokenizer_config.json").is_file() else None
    )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder or reference.model,
            revision=None if folder else reference.revision,
            trust_remote_code=reference.trust_remote_code,
        )
    except Exception as error:
        raise PlacementError(
            f"{folder or reference.model} has no tokenizer that loads: {_first_line(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read an adapter's configuration.

    Raises:
        PlacementError: It cannot be read, or the method has no path from the base.
    """
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise PlacementError(
            f"{folder}/adapter_config.json is not readable: {_first_line(error)}"
        ) from error
    try:
        tuner_of(config)
    except PlacementError as error:
        raise PlacementError(f"{folder}: {error}") from None
    return config


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Load an adapter on its base as stock PEFT does; trained tensors require gradients.

    If the adapter's embeddings have more rows than the base's, the base is resized first; the new
    rows have no value in the base and keep their trained value.

    Raises:
        CheckpointError: Truncated or not finite.
        PlacementError: PEFT cannot load it, or not all of its tensors.
    """
    tensors = read_tensors(folder)
    fit_vocabulary(base, {plain_name(name): tensor for name, tensor in tensors.items()})
    try:
        with _stock_adapter(folder, tensors) as readable:
            model = PeftModel.from_pretrained(base, str(readable), is_trainable=True)
    except Exception as error:
        is_other = "size mismatch" in str(error)
        raise PlacementError(
            f"the adapter in {folder} does not load on the base: {_first_line(error)}"
            f"{' It was trained on another base: name that with --base.' if is_other else ''}"
        ) from error
    require_all_used(model, tensors, folder)
    return model.eval()


@contextmanager
def _stock_adapter(folder: Path, tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """A folder in which PEFT finds the tensors: the adapter's own if it knows the names in it."""
    if has_stock_names(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="backtrack-adapter-") as temporary:
        shutil.copy(folder / "adapter_config.json", temporary)
        save_file(dict(tensors), Path(temporary) / "adapter_model.safetensors")
        yield Path(temporary)


def require_all_used(model: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise an error unless PEFT loads every tensor, and has none left to load.

    PEFT silently ignores unknown tensors, and leaves missing ones at random values.

    Raises:
        PlacementError: With the name of the first such tensor.
    """
    expected: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    own = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    unknown = sorted(n for n in tensors if n not in expected and plain_name(n) not in own)
    missing = sorted(set(expected) - set(tensors))
    if unknown:
        raise PlacementError(
            f"{folder} has {len(unknown)} tensors for which the adapted base has no place, first "
            f"{unknown[0]!r}. If they belong to another model, name that with --base."
        )
    if missing:
        raise PlacementError(
            f"{folder} lacks {len(missing)} tensors that its adapter_config.json describes, first "
            f"{missing[0]!r}. Save the adapter again, or leave this checkpoint out."
        )


@torch.inference_mode()
def probe(model: Any, vocabulary: int | None = None) -> Tensor:
    """Logits of fixed token ids: equal models give equal bits.

    Args:
        model: A causal language model on any device.
        vocabulary: Number of tokens to draw ids from and to return; None takes the model's.

    Returns:
        Logits [2, 24, vocabulary] in fp32 on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = vocabulary or vocabulary_size(model)
    ids = torch.randint(vocabulary, PROBE_SHAPE, generator=generator)
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits[..., :vocabulary].float().cpu()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
