"""Load the models that a path runs between, and say clearly why one does not load."""

from __future__ import annotations

import json
import shutil
import tempfile
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
from backtrack.path.models.embeddings import fit_vocabulary, num_tokens
from backtrack.run.checkpoint_reader import base_folder, read_checkpoint, read_tensors, verify_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.records import BaseModelReference
    from backtrack.run.directory import Run

PROBE_SHAPE = (2, 24)


def pick_device(device: str) -> torch.device:
    """The device named, or for `auto` the first GPU, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(reference: BaseModelReference, device: torch.device) -> PreTrainedModel:
    """The base in evaluation mode, after checking that it is the run's.

    Raises:
        RunError: Not found, or not the base the run was trained on.
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
    """Whether a base's linear layers hold packed numbers: asked for, or by its own files."""
    if reference.quantization is not None:
        return True
    path = base_folder(reference) / "config.json"
    try:
        return "quantization_config" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False


def load_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    quantization: Literal["4bit", "8bit"] | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder of safetensors, in evaluation mode.

    Args:
        folder: With config.json and weights.
        dtype: `auto` is the type of the files.
        device: Where it is put.
        trust_remote_code: Whether code from the folder may run.
        quantization: How bitsandbytes packs it; none is as its files are.

    Raises:
        PlacementError: transformers cannot load it.
    """
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **quantizing(quantization, device),
        )
    except Exception as error:  # transformers raises many unrelated types
        raise PlacementError(
            f"{folder} does not load as a causal language model: {_first_line(error)}"
        ) from error
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # On some CPUs bitsandbytes packs the weights anew, for bf16, at the first forward pass
            # in evaluation mode: logits would depend (by 0.002) on what was done with the model.
            module.support_avx512bf16_for_cpu = False
    loaded: PreTrainedModel = (model if quantization else model.to(device)).eval()
    return loaded.requires_grad_(requires_grad=False)


def quantizing(
    quantization: Literal["4bit", "8bit"] | None, device: torch.device
) -> dict[str, Any]:
    """What makes transformers quantize: NF4 twice over as QLoRA does, or LLM.int8."""
    if quantization is None:
        return {}
    fields: dict[str, Any] = (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        if quantization == "4bit"
        else {"load_in_8bit": True}
    )
    config = BitsAndBytesConfig(**fields)  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(reference: BaseModelReference, checkpoint: Path | None = None) -> Any:
    """The tokenizer beside a checkpoint if it has one, else the base's.

    Raises:
        PlacementError: Neither has one.
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
    """An adapter's configuration.

    Raises:
        PlacementError: It cannot be read, or the method has no path through weight space.
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
    """An adapter on its base, as stock PEFT loads it, what was trained marked as such.

    Where the adapter brings embeddings with more rows than the base's, the base is resized first;
    the new rows have no value in the base and stay at their trained one.

    Raises:
        CheckpointError: Truncated or not finite.
        PlacementError: It belongs to another model.
    """
    tensors = read_tensors(folder)
    fit_vocabulary(base, {plain_name(name): tensor for name, tensor in tensors.items()})
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except Exception as error:
        raise PlacementError(
            f"the adapter in {folder} does not fit the base: {_first_line(error)} "
            "Was it trained on another base? Give the right one with --base."
        ) from error
    _require_all_used(model, tensors, folder)
    return model.eval()


def _require_all_used(model: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """PEFT passes over tensors without a place, and leaves what is missing at random values."""
    expected: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    own = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    strays = {name for name in tensors if name not in expected and plain_name(name) not in own}
    differing = sorted(strays | (set(expected) - set(tensors)))
    if differing:
        side = "missing from the adapter" if differing[0] in expected else "not in the model"
        raise PlacementError(
            f"{folder}: {len(differing)} tensors do not fit the base, first {differing[0]!r} "
            f"({side}). Was it trained on another base? Give the right one with --base."
        )


def load_trained(run: Run, step: int, like: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters of a fully trained checkpoint, by name, in the type of its files, on the CPU.

    Args:
        run: The run.
        step: The checkpoint.
        like: The base; names must agree with it.

    Raises:
        CheckpointError: Truncated, damaged or not finite.
        PlacementError: Names differ from the base's.
    """
    tensors = read_checkpoint(run, step)
    names = [name for name, _ in like.named_parameters()]
    if set(names) <= set(tensors) <= set(like.state_dict()):
        return {name: tensors[name] for name in names}
    folder = run.folder(step)
    model = load_checkpoint(run, step, tensors, "auto", torch.device("cpu"))
    tuned = {name: parameter.detach() for name, parameter in model.named_parameters()}
    strays = sorted(set(tuned) ^ set(names))
    if strays:
        raise PlacementError(
            f"{folder}: {len(strays)} tensors do not fit the base, first {strays[0]!r}. Was it "
            "trained on another base?"
        )
    return tuned


def load_checkpoint(
    run: Run, step: int, tensors: Mapping[str, Tensor], dtype: str, device: torch.device
) -> PreTrainedModel:
    """A whole model's checkpoint as stock transformers loads it.

    Where it is kept in a form that transformers does not read (coded, or another trainer's), a
    folder that it reads is made for the while.

    Args:
        run: The run.
        step: The checkpoint.
        tensors: Its tensors, by the names of its files.
        dtype: `auto` is the type of the files.
        device: Where the model is put.
    """
    folder, code = run.folder(step), run.base.trust_remote_code
    if run.entry(step).storage == "plain":
        return load_model(folder, dtype, device, trust_remote_code=code)
    if not (folder / "config.json").is_file():
        folder = base_folder(run.base)
    with tempfile.TemporaryDirectory(prefix="backtrack-checkpoint-") as made:
        for path in [*folder.glob("*.json"), *folder.glob("*.py")]:
            shutil.copy(path, made)
        save_file(dict(tensors), Path(made) / "model.safetensors", metadata={"format": "pt"})
        return load_model(Path(made), dtype, device, trust_remote_code=code)


def require_shapes(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors of other shapes than the base's.

    Raises:
        PlacementError: Names the first.
    """
    wrong = [name for name in base if base[name].shape != tuned[name].shape]
    if wrong:
        raise PlacementError(
            f"{where}: {len(wrong)} tensors do not fit the base, first {wrong[0]!r}: "
            f"{tuple(tuned[wrong[0]].shape)}, the base's is {tuple(base[wrong[0]].shape)}. Was it "
            "trained on another base?"
        )


@torch.inference_mode()
def probe(model: Any, vocabulary: int | None = None) -> Tensor:
    """Logits of fixed token ids: a model's fingerprint, bit for bit.

    Args:
        model: On any device.
        vocabulary: Tokens that are read and scored; the model's own if not given.

    Returns:
        Logits [2, 24, vocabulary] in fp32 on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = vocabulary or num_tokens(model)
    ids = torch.randint(vocabulary, PROBE_SHAPE, generator=generator)
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits[..., :vocabulary].float().cpu()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
