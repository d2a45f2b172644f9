"""Ask a torch model as an engine in this process would."""

from __future__ import annotations

from typing import Any

from backtrack.evaluate.torch_model import TorchModel


def as_model(model: Any, tokenizer: Any, batch_size: int = 4) -> TorchModel:
    """The model behind the interface that objectives ask."""
    return TorchModel(model, tokenizer, batch_size)
