"""Train the recipe given as JSON in a process of its own, slowly enough to be killed midway."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from backtrack.recipe import Recipe
from backtrack.train.trainers.train import train

if __name__ == "__main__":
    train(
        Recipe.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")),
        resume=True,
        on_progress=lambda _: time.sleep(0.05),
    )
