"""Read a checkpoint of full fine-tuning as parameters, or as the model stock libraries load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from backtrack.errors import PlacementError
from backtrack.path.models.embeddings import embedding_names
from backtrack.path.models.loading import load_model, moving_weights
from backtrack.records.places import ANOTHER_BASE
from backtrack.run.checkpoint_reader import has_stock_names, read_checkpoint
from backtrack.run.model_files import model_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.run.directory import Run


@dataclass(frozen=True)
class FullCheckpoint:
    """One checkpoint of a fully trained model.

    Attributes:
        run: The run it belongs to.
        step: Its step.
        tensors: Its tensors, by the names in its files, on the CPU.
    """

    run: Run
    step: int
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, run: Run, step: int) -> FullCheckpoint:
        """Read and check a checkpoint's tensors.

        Raises:
            CheckpointError: Truncated, damaged or not finite.
        """
        return cls(run, step, read_checkpoint(run, step))

    def weights(self, base: PreTrainedModel) -> dict[str, Tensor]:
        """The weights that move, by the base's names, in the type of the checkpoint's files.

        Names in the files that are the base's are taken as they are; others, such as those of
        another release, as transformers reads them. A head that the checkpoint ties is its
        embedding. All are on the CPU.

        Raises:
            PlacementError: Weights are missing, or the model has others than the base.
        """
        names = set(moving_weights(base))
        aliases = set(base.state_dict()) - names
        if names <= set(self.tensors) <= names | aliases and not self._has_own(aliases, base):
            return {name: self.tensors[name] for name in moving_weights(base)}
        loaded = self.load("auto", torch.device("cpu"))
        self._require_same_model(base, loaded)
        trained = loaded.state_dict()
        return {name: trained[name] for name in moving_weights(base)}

    def _require_same_model(self, base: PreTrainedModel, loaded: PreTrainedModel) -> None:
        """Raise an error unless each model has all weights that move in the other."""
        moving, trained = moving_weights(base), moving_weights(loaded)
        differing = sorted(
            moving.keys() - loaded.state_dict().keys() | trained.keys() - moving.keys()
        )
        if not differing:
            return
        if embedding_names(loaded).issuperset(differing):
            raise PlacementError(
                f"{self.run.folder(self.step)} has a head of its own, which the run's last "
                "checkpoint ties to the embedding. Adopt it as a run of its own."
            )
        side = "base" if differing[0] in moving else "checkpoint"
        raise PlacementError(
            f"{self.run.folder(self.step)} and the base are different models: {differing[0]!r} "
            f"is only in the {side} ({len(differing)} weights differ). {ANOTHER_BASE}"
        )

    def _has_own(self, aliases: Iterable[str], base: PreTrainedModel) -> bool:
        """Whether a tensor that is tied in the base has values of its own in the checkpoint."""
        state = base.state_dict(keep_vars=True)
        names = {id(weight): name for name, weight in moving_weights(base).items()}
        tied = {name: names.get(id(state[name])) for name in aliases if name in self.tensors}
        return any(
            owner is not None and not torch.equal(self.tensors[name], self.tensors[owner])
            for name, owner in tied.items()
        )

    def load(self, dtype: str, device: torch.device) -> PreTrainedModel:
        """The model as stock transformers loads it.

        If transformers does not read the files (compressed, another trainer's format, or names
        with a wrapper's prefix), they are written into a temporary folder that it does read.

        Args:
            dtype: `auto` is the type of the files.
            device: Device of the model.
        """
        folder, code = self.run.folder(self.step), self.run.base.trust_remote_code
        if self.run.entry(self.step).storage == "plain" and has_stock_names(folder):
            return load_model(folder, dtype, device, trust_remote_code=code)
        with model_files(self.run).in_folder() as temporary:
            weights = temporary / "model.safetensors"
            save_file(dict(self.tensors), weights, metadata={"format": "pt"})
            return load_model(temporary, dtype, device, trust_remote_code=code)
