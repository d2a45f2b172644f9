"""Read a checkpoint of full fine-tuning as parameters, or as the model stock libraries load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from backtrack.errors import PlacementError
from backtrack.path.models.loading import load_model
from backtrack.records.places import ANOTHER_BASE
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.model_files import model_files

if TYPE_CHECKING:
    from collections.abc import Mapping

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

    def parameters(self, base: PreTrainedModel) -> dict[str, Tensor]:
        """The parameters by the base's names, in the type of the checkpoint's files, on the CPU.

        Raises:
            PlacementError: Names differ from the base's.
        """
        names = [name for name, _ in base.named_parameters()]
        if set(names) <= set(self.tensors) <= set(base.state_dict()):
            return {name: self.tensors[name] for name in names}
        model = self.load("auto", torch.device("cpu"))
        trained = {name: parameter.detach() for name, parameter in model.named_parameters()}
        differing = sorted(set(trained) ^ set(names))
        if differing:
            raise PlacementError(
                f"{self.run.folder(self.step)}: {len(differing)} tensors do not fit the base. The "
                f"first is {differing[0]!r}. Was the run trained on another base? {ANOTHER_BASE}"
            )
        return trained

    def load(self, dtype: str, device: torch.device) -> PreTrainedModel:
        """The model as stock transformers loads it.

        If transformers does not read the files (compressed, or another trainer's format), they are
        written into a temporary folder that it does read.

        Args:
            dtype: `auto` is the type of the files.
            device: Device of the model.
        """
        folder, code = self.run.folder(self.step), self.run.base.trust_remote_code
        if self.run.entry(self.step).storage == "plain":
            return load_model(folder, dtype, device, trust_remote_code=code)
        with model_files(self.run).in_folder() as temporary:
            weights = temporary / "model.safetensors"
            save_file(dict(self.tensors), weights, metadata={"format": "pt"})
            return load_model(temporary, dtype, device, trust_remote_code=code)
