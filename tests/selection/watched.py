"""Objectives of a real model that say which process measures by which GPUs, and take a while."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER, SECONDS = "BACKTRACK_TEST_FOLDER", "BACKTRACK_TEST_SECONDS"
"""Environment variables: where process ids are written, and how long an item takes."""


def likely(model: Any, tokenizer: Any, item_ids: Sequence[str]) -> list[float]:
    """Probability of a character after another one."""
    _say_who_measures(len(item_ids))
    with torch.inference_mode():
        asked = torch.tensor([[3 + int(number) % 50] for number in item_ids])
        chances = model(asked).logits[:, -1].softmax(-1)
    return [float(row[7]) for row in chances]


def unlikely(model: Any, tokenizer: Any, item_ids: Sequence[str]) -> list[float]:
    """One minus that probability."""
    return [1 - chance for chance in likely(model, tokenizer, item_ids)]


def _say_who_measures(num_items: int) -> None:
    if FOLDER in os.environ:
        file = Path(os.environ[FOLDER]) / str(os.getpid())
        if not file.exists():
            file.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""), encoding="utf-8")
        time.sleep(num_items * float(os.environ[SECONDS]))
