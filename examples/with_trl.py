"""Keep a trajectory in a TRL script of your own, then choose and export a point.

Runs offline on the model and data embedded in the package, in about two minutes on a CPU:

    python examples/with_trl.py runs/with-trl
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import backtrack
from backtrack import Run, TrajectoryCallback, export, select
from backtrack.recipe import load_recipe

ASSETS = Path(backtrack.__file__).parent / "assets" / "demo"


def train(folder: Path, max_steps: int) -> None:
    """An ordinary TRL script but for the callback."""
    trainer = SFTTrainer(
        model=str(ASSETS / "model"),
        train_dataset=load_dataset("json", data_files=str(ASSETS / "train.jsonl"), split="train"),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(folder.with_name(f"{folder.name}-trainer")),
            max_steps=max_steps,
            learning_rate=5e-3,
            per_device_train_batch_size=16,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        callbacks=[TrajectoryCallback(folder, every_steps=max(1, max_steps // 8))],
    )
    trainer.train()


def main(folder: Path, max_steps: int = 120) -> None:
    train(folder, max_steps)
    run = Run.open(folder)
    recipe = load_recipe(ASSETS / "recipe.yaml", ["search.trials=4"])
    choice = select(run, weight=0.6, recipe=recipe)
    print(choice.selection.verdict)
    written = export(run, choice.point, folder / "export" / "adapter")
    print(f"{choice.point}: {written.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
