"""Load base models and adapters, and name the cause if one does not load."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from backtrack.errors import PlacementError
from backtrack.formatting import one_line
from backtrack.free_memory import HEADROOM, free_bytes
from backtrack.path.adapters.handles import plain_name
from backtrack.path.adapters.tuners import tuner_of
from backtrack.path.curves import rounding
from backtrack.path.models.architecture import class_and_config
from backtrack.path.models.embeddings import fit_vocabulary, vocabulary_size
from backtrack.path.models.exact_arithmetic import exact_arithmetic
from backtrack.records.places import ANOTHER_BASE
from backtrack.run.checkpoint_reader import base_folder, has_stock_names, read_tensors, verify_base
from backtrack.run.checkpoint_writer import weight_files
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.records import BaseModelReference
    from backtrack.records.run import Quantization

PROBE_SHAPE = (2, 24)
_ORIGINAL = "original_module"
"""PEFT's name of the base's own module inside the wrapper of `modules_to_save`."""


def pick_device(device: str) -> torch.device:
    """The named device; `auto` is the GPUs, else the CPU.

    `cuda` without an index is the first GPU, or all of them for a model that does not fit there.
    """
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    reference: BaseModelReference, device: torch.device, config: Any = None
) -> PreTrainedModel:
    """Load the base in evaluation mode, after checking that the run was trained on it.

    Args:
        reference: The base.
        device: Device of the model.
        config: The configuration to load it under; None is its own.

    Raises:
        RunError: Not found, or not the base that the run was trained on.
        PlacementError: transformers cannot load it.
    """
    folder = verify_base(reference)
    if config is None and reference.architecture is not None:
        config = read_config(folder, trust_remote_code=reference.trust_remote_code)
        config.architectures = [reference.architecture]
    return load_model(
        folder,
        reference.dtype,
        device,
        trust_remote_code=reference.trust_remote_code,
        quantization=reference.quantization,
        config=config,
    )


def read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """Read the configuration of a model.

    Raises:
        PlacementError: transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many unrelated types
        raise PlacementError(f"{folder}/config.json does not load: {one_line(error)}") from error


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
    quantization: Quantization | None = None,
    config: Any = None,
) -> PreTrainedModel:
    """Load a language model from a folder of safetensors, in evaluation mode.

    Args:
        folder: Folder with config.json and weights.
        dtype: `auto` is the type of the files.
        device: Device of the model.
        trust_remote_code: Whether code from the folder may run.
        quantization: How bitsandbytes quantizes the model; None loads the files as they are.
        config: Its configuration; None is that of the folder.

    Raises:
        PlacementError: transformers cannot load it, or its files lack weights of the model.
    """
    try:
        with _no_progress_bar():
            options = _loading_options(quantization, device, folder)
            own = config or read_config(folder, trust_remote_code=trust_remote_code)
            kind, part = class_and_config(own)
            loaded: Any = kind.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                config=part,
                output_loading_info=True,
                **options,
            )
    except PlacementError:
        raise
    except Exception as error:  # transformers raises many unrelated types
        raise PlacementError(
            f"{folder} does not load as a language model: {one_line(error)}"
        ) from error
    model, about = loaded
    _require_complete(about["missing_keys"], folder)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # On some CPUs bitsandbytes repacks the weights for bf16 at the first forward pass in
            # evaluation mode: logits would depend (by 0.002) on what the model was used for.
            module.support_avx512bf16_for_cpu = False
    ready: PreTrainedModel = (model if options else model.to(device)).eval()
    _require_on_devices(ready, device, folder)
    return ready.requires_grad_(requires_grad=False)


def _require_on_devices(model: PreTrainedModel, device: torch.device, folder: Path) -> None:
    """Weights that accelerate keeps elsewhere, because they do not fit, cannot be written to."""
    elsewhere = [n for n, p in model.named_parameters() if p.device.type != device.type]
    if elsewhere:
        raise PlacementError(
            f"{folder} does not fit on the {torch.cuda.device_count()} GPUs of this machine: "
            f"{len(elsewhere)} of its weights are left over, first {elsewhere[0]!r}. Quantize the "
            "base (`base: {quantization: 4bit}`), or use GPUs with more memory."
        )


def _require_complete(missing: Iterable[str], folder: Path) -> None:
    """Stock transformers begins weights that are not in the files at random values."""
    names = sorted(missing)
    if names:
        raise PlacementError(
            f"{folder} lacks {len(names)} weights of the model that its config.json describes, "
            f"first {names[0]!r}: transformers would put random values in their place."
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


_QUANTIZATIONS: Mapping[str, dict[str, Any]] = {
    "4bit": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    },
    "8bit": {"load_in_8bit": True},
}  # fmt: skip


def _loading_options(
    quantization: Quantization | None, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Load the model onto its device, without a copy in host memory first.

    A model that does not fit on the first of several GPUs is spread over them by accelerate.
    """
    on_device: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    if device == torch.device("cuda") and torch.cuda.device_count() > 1:
        num_bytes = sum(path.stat().st_size for path in weight_files(folder))
        if free_bytes(device) < HEADROOM * num_bytes:
            on_device = {"device_map": "auto"}
    return on_device | quantization_options(quantization, device)


def quantization_options(
    quantization: Quantization | None, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a model that bitsandbytes quantizes on loading."""
    if quantization is None:
        return {}
    fields = quantization if isinstance(quantization, dict) else _QUANTIZATIONS[quantization]
    config = BitsAndBytesConfig(**fields)  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": device}}


def moving_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model that training moves: parameters, and buffers that are saved.

    Each tied tensor is there once.
    """
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read an adapter's configuration.

    Raises:
        PlacementError: It cannot be read, or the method has no path from the base.
    """
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise PlacementError(
            f"{folder}/adapter_config.json is not readable: {one_line(error)}"
        ) from error
    try:
        tuner_of(config)
    except PlacementError as error:
        raise PlacementError(f"{folder}: {error}") from None
    return config


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Load an adapter on its base as stock PEFT does; trained tensors require gradients.

    If the adapter's embeddings have other rows than the base's, the base is resized first; new
    rows have no value in the base and keep their trained value.

    Raises:
        CheckpointError: Truncated or not finite.
        PlacementError: PEFT cannot load it, or not all of its tensors.
    """
    stored = read_tensors(folder)
    tensors = without_copies(stored)
    fit_vocabulary(base, {plain_name(name): tensor for name, tensor in tensors.items()})
    overwritten = {plain_name(name) for name in stored if _ORIGINAL in name.split(".")}
    originals = {n: p.clone() for n, p in base.named_parameters() if n in overwritten}
    try:
        with _stock_adapter(folder, tensors) as readable:
            model = PeftModel.from_pretrained(base, str(readable), is_trainable=True)
    except Exception as error:
        is_other = "size mismatch" in str(error)
        raise PlacementError(
            f"the adapter in {folder} does not load on the base: {one_line(error)}"
            f"{f' It was trained on another base. {ANOTHER_BASE}' if is_other else ''}"
        ) from error
    require_all_used(model, tensors, folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _ORIGINAL in name.split(".") and plain_name(name) in originals:
                parameter.copy_(originals[plain_name(name)])
    return model.eval()


def without_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors, without the copies that PEFT saves of a resized module.

    With `modules_to_save` on a resized embedding or head PEFT writes it three times: under its
    own name, which is read, and as `modules_to_save` and `original_module`.
    """
    copies = {_ORIGINAL, "modules_to_save"}
    return {name: t for name, t in tensors.items() if copies.isdisjoint(name.split("."))}


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
            f"{unknown[0]!r}. {ANOTHER_BASE}"
        )
    if missing:
        raise PlacementError(
            f"{folder} lacks {len(missing)} tensors that its adapter_config.json describes, first "
            f"{missing[0]!r}. Save the adapter again, or leave this checkpoint out."
        )


@torch.inference_mode()
def probe(model: Any, vocabulary: int | None = None) -> Tensor:
    """Logits of fixed token ids: equal models give equal bits, also where TF32 or autocast is on.

    Args:
        model: A causal language model on any device.
        vocabulary: Number of tokens to draw ids from and to return; None takes the model's.

    Returns:
        Logits [2, 24, vocabulary] in fp32 on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = vocabulary or vocabulary_size(model)
    ids = torch.randint(vocabulary, PROBE_SHAPE, generator=generator)
    with exact_arithmetic():
        logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits[..., :vocabulary].float().cpu()


def differs_by(model: Any, expected: Tensor, tolerance: float) -> float:
    """By how much a model's probe logits differ from the expected ones; 0 if within tolerance.

    A device whose kernels do not repeat their sums in one order (atomic additions) gives a model
    other logits each time. Only there, differences by rounding in the model's type are allowed.

    Args:
        model: A causal language model on any device.
        expected: Logits by `probe`, [2, 24, vocabulary].
        tolerance: Largest allowed difference, relative to the largest expected logit.
    """
    vocabulary = expected.shape[-1]
    found = probe(model, vocabulary)
    largest, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if largest <= tolerance * scale:
        return 0.0
    is_repeated = torch.equal(found, probe(model, vocabulary))
    return 0.0 if not is_repeated and largest <= rounding(model.dtype) * scale else largest
