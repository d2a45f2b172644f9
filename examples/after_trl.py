"""Choose a point of a run that TRL has finished, then export it.

Nothing of ours is there when it is trained: `train` is an ordinary script of somebody else's. What
it leaves is a folder of `checkpoint-*`, which is adopted by reference.

Runs offline on the model and data embedded in the package, in about two minutes on a CPU:

    python examples/after_trl.py outputs/sft
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import backtrack
from backtrack import adopt, export, select
from backtrack.recipe import load_recipe

ASSETS = Path(backtrack.__file__).parent / "assets" / "demo"


def train(folder: Path, max_steps: int) -> None:
    """An ordinary TRL script."""
    trainer = SFTTrainer(
        model=str(ASSETS / "model"),
        train_dataset=load_dataset("json", data_files=str(ASSETS / "train.jsonl"), split="train"),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=max_steps,
            save_steps=max(1, max_steps // 4),
            learning_rate=5e-3,
            per_device_train_batch_size=16,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
    )
    trainer.train()


def main(folder: Path, max_steps: int = 120, *overrides: str) -> None:
    train(folder, max_steps)
    # On a shell: backtrack select outputs/sft --recipe RECIPE --weight 0.6 --export chosen
    recipe = load_recipe(ASSETS / "recipe.yaml", ["search.trials=4", *overrides])
    run = adopt(folder, runs=folder.parent / "runs", recipe=recipe)
    choice = select(run, weight=0.6)
    print(choice.selection.verdict)
    written = export(run, choice.point, folder.parent / "chosen")
    print(f"{choice.point}: {written.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:] or ["120"])[0]), *sys.argv[3:])
