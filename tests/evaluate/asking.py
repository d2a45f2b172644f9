"""Ask a torch model as an engine in this process would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.evaluate.torch_model import TorchModel

if TYPE_CHECKING:
    from backtrack.records import BatchSize


def as_model(model: Any, tokenizer: Any, batch_size: BatchSize = 4) -> TorchModel:
    """The model behind the interface that objectives ask; its trial passes are behind it."""
    made = TorchModel(model, tokenizer, batch_size)
    assert made.reads_trees
    return made
