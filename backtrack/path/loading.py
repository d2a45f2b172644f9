"""Load the models that a path runs between, and say clearly why one does not load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from backtrack.errors import PlacementError
from backtrack.run.reader import read_checkpoint, read_tensors, require_finite, verify_base

if TYPE_CHECKING:
    from pathlib import Path

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
        folder, reference.dtype, device, trust_remote_code=reference.trust_remote_code
    )


def load_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder of safetensors, in evaluation mode.

    Args:
        folder: Its folder, or its configuration's where `weights` are given.
        dtype: `auto` or the name of a type.
        device: Where it is put.
        trust_remote_code: See transformers.
        weights: Tensors by the names of their file.

    Raises:
        PlacementError: transformers cannot load it.
    """
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        kind: Any = AutoModelForCausalLM
        given: dict[str, Any] = {}
        if weights is not None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            with torch.device("meta"):
                kind = type(kind.from_config(config, trust_remote_code=trust_remote_code))
            given = {"config": config, "state_dict": weights}
        model: Any = kind.from_pretrained(
            folder if weights is None else None,
            **given,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except Exception as error:  # transformers raises many unrelated types
        raise PlacementError(
            f"{folder} does not load as a causal language model: {_first_line(error)}"
        ) from error
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded.requires_grad_(requires_grad=False)


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
    if config.is_prompt_learning or PeftType(config.peft_type) is PeftType.ADAPTION_PROMPT:
        raise PlacementError(
            f"{folder} is a {config.peft_type} adapter: it adds prompts, not weights, so there "
            "is no path of weights from the base to it. Choose among its checkpoints by hand, "
            "or train LoRA or OFT."
        )
    return config


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """An adapter on its base, as stock PEFT loads it, what was trained marked as such.

    Raises:
        CheckpointError: Truncated or not finite.
        PlacementError: It belongs to another model.
    """
    tensors = read_tensors(folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except Exception as error:
        raise PlacementError(
            f"the adapter in {folder} does not fit the base: {_first_line(error)} "
            "Was it trained on another base? Give the right one with --base."
        ) from error
    _require_all_used(model, tensors, folder)
    return model.eval()


def _require_all_used(model: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """PEFT passes over tensors without a place, and leaves what is missing at random values."""
    from peft import get_peft_model_state_dict

    expected: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = sorted(set(expected) ^ {n for n in tensors if n in expected or ".embed" not in n})
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
        like: The base; names and shapes must agree with it.

    Raises:
        CheckpointError: Truncated, damaged or not finite.
        PlacementError: Names or shapes differ from the base's.
    """
    folder = run.folder(step)
    model = load_model(
        folder,
        "auto",
        torch.device("cpu"),
        trust_remote_code=run.base.trust_remote_code,
        weights=read_checkpoint(run, step),
    )
    tuned = {name: parameter.detach() for name, parameter in model.named_parameters()}
    require_finite(tuned, str(folder))
    base = dict(like.named_parameters())
    strays = sorted(set(tuned) ^ set(base))
    wrong = [n for n in base if n in tuned and base[n].shape != tuned[n].shape]
    if strays or wrong:
        first = (strays or wrong)[0]
        raise PlacementError(
            f"{folder}: {len(strays) + len(wrong)} tensors do not fit the base, first {first!r} "
            f"({'name' if strays else 'shape'}). Was it trained on another base, or its "
            "vocabulary resized?"
        )
    return tuned


@torch.inference_mode()
def probe(model: Any) -> Tensor:
    """Logits `[2, 24, vocabulary]` of fixed token ids: a model's fingerprint, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, PROBE_SHAPE, generator=generator)
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits.float().cpu()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
