"""The configuration of whole models between a base and a checkpoint: the checkpoint's.

What describes the base's weights in its files (dtype, rows of the embedding, a tied head) is
taken from the base, to load them; the backend then resizes and unties the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.path.models.loading import load_base, read_config
from backtrack.run.checkpoint_reader import base_folder
from backtrack.run.model_files import model_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backtrack.run.directory import Run

_STORED_FIELDS = ("vocab_size", "tie_word_embeddings")


def load_as_checkpoint(run: Run, device: torch.device) -> PreTrainedModel:
    """Load a run's base under the configuration of its last checkpoint, a whole model.

    Raises:
        RunError: Not the base that the run was trained on.
        PlacementError: transformers cannot load it.
    """
    code = run.base.trust_remote_code
    with model_files(run).in_folder() as folder:
        config = read_config(folder, trust_remote_code=code)
    base = read_config(base_folder(run.base), trust_remote_code=code)
    _describe_stored(config, base)
    _describe_stored(config.get_text_config(decoder=True), base.get_text_config(decoder=True))
    return load_base(run.base, device, config)


def _describe_stored(config: Any, base: Any) -> None:
    """Take the fields of a configuration that describe the base's files from the base's."""
    config.dtype = base.dtype  # None, and so that of the files, if the base does not name it
    for field in _STORED_FIELDS:
        value = getattr(base, field, None)
        if value is not None:
            setattr(config, field, value)
