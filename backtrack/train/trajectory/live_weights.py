"""The tensors and small files of a live model that go into a checkpoint.

Names are those that stock PEFT and transformers write. Their own functions select and name the
tensors once, on meta tensors; after that the live parameters are read directly, so a save costs
only its copy. If a library computes what it writes (VB-LoRA's top-k logits, fused experts that are
split), its function is called at every save.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, PeftType, get_peft_model_state_dict
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging as transformers_logging

from backtrack.errors import UsageError
from backtrack.path.models.saving import save_whole_model, sort_names
from backtrack.run.bits import Bits, bits_of, tensor_of
from backtrack.train.trajectory.live_method import active_config
from backtrack.train.trajectory.snapshot import full_shape, is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    Convert = Callable[[Mapping[str, Bits]], Mapping[str, Bits]]


class LiveWeights:
    """The trained tensors of a live model, by their names in a checkpoint.

    Attributes:
        tensors: Live tensors by their names in the file; empty if the library computes them.
        files: Contents of the small files beside the weights (`config.json`), by name.
        is_sharded: The model's tensors are sharded over processes.
    """

    def __init__(self, model: Any, *, is_resized: bool, dtype: torch.dtype | None) -> None:
        """Find the tensors to save.

        Args:
            model: A transformers or PEFT model.
            is_resized: The vocabulary was resized, so an adapter must include the embedding.
            dtype: Dtype that full models are stored in; None for the live one.
        """
        self._model = model
        self._is_resized = is_resized
        self._dtype = dtype
        self.refresh()
        self.files = self._small_files()

    def refresh(self) -> None:
        """Find the tensors again, after anything that may have replaced parameters."""
        state = self._model.state_dict(keep_vars=True)
        on_meta = {name: torch.empty(full_shape(t), device="meta") for name, t in state.items()}
        origin = {id(tensor): name for name, tensor in on_meta.items()}
        named = self._named(on_meta)
        self.tensors: dict[str, Tensor] = {}
        if all(id(tensor) in origin for tensor in named.values()):
            self.tensors = {name: state[origin[id(tensor)]] for name, tensor in named.items()}
        self.is_sharded = any(is_sharded(tensor) for tensor in state.values())
        if self.is_sharded and not self.tensors and self.is_adapter:
            raise UsageError(
                f"{active_config(self._model).peft_type} adapters cannot be saved during training "
                "while they are sharded: PEFT computes what it saves. Train without sharding."
            )

    @property
    def is_adapter(self) -> bool:
        return isinstance(self._model, PeftModel)

    def collect(
        self,
    ) -> tuple[dict[str, Tensor], Convert]:
        """Return the tensors to copy now, and a function from the copies to the file's tensors."""
        if self.tensors:
            return self.tensors, lambda copies: copies
        if self.is_adapter:
            self.files = self._small_files()
            return self._named(self._model.state_dict()), lambda copies: copies
        return self._plain_state(), self._converted

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.is_adapter:
            with _at_full_rank(active_config(self._model)):
                named: dict[str, Tensor] = get_peft_model_state_dict(
                    self._model,
                    state_dict=dict(state),
                    adapter_name=self._model.active_adapters[0],
                    save_embedding_layers=self._is_resized,
                )
            return named
        plain = {name: state[name] for name in self._plain_state()}
        return dict(revert_weight_conversion(self._model, plain))

    def _plain_state(self) -> dict[str, Tensor]:
        """Return a full model's tensors, each tied tensor once."""
        model = self._model
        state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        ignored = set(model._keys_to_ignore_on_save or ())  # noqa: SLF001  # no public name
        return {
            name: tensor
            for name, tensor in state.items()
            if name not in ignored
            and not (name in tied and tied[name] in state and state[tied[name]] is tensor)
        }

    def _converted(self, copies: Mapping[str, Bits]) -> Mapping[str, Bits]:
        tensors = {name: tensor_of(bits) for name, bits in copies.items()}
        return {n: bits_of(t) for n, t in revert_weight_conversion(self._model, tensors).items()}

    def _small_files(self) -> dict[str, bytes]:
        """Return what the libraries write beside the weights, by saving without weights."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if self.is_adapter:
                name = self._model.active_adapters[0]
                empty = {key: torch.empty(0) for key in self._model.state_dict(keep_vars=True)}
                with _at_full_rank(active_config(self._model)):
                    self._model.save_pretrained(
                        str(folder),
                        selected_adapters=[name],
                        save_embedding_layers=False,
                        state_dict=empty,
                    )
                sort_names(folder)
                folder = folder if name == "default" else folder / name
                return {"adapter_config.json": (folder / "adapter_config.json").read_bytes()}
            had_bar = transformers_logging.is_progress_bar_enabled()
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            save_whole_model(self._model, folder, state_dict={})
            if had_bar:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            files = {
                str(path.relative_to(folder)): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and path.suffix != ".safetensors"
            }
        if self._dtype is not None:
            config = json.loads(files["config.json"])
            config["dtype"] = str(self._dtype).removeprefix("torch.")
            files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        return files


@contextmanager
def _at_full_rank(config: Any) -> Iterator[None]:
    """Hide AdaLoRA's rank pattern, by which PEFT would drop the removed ranks on saving.

    The removed ranks are zero in the live weights. Saved with them, all checkpoints of a run have
    one configuration and one shape.
    """
    if config.peft_type != PeftType.ADALORA:
        yield
        return
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern
