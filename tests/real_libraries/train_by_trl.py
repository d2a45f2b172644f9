"""What TRL's trainers leave: `python train_by_trl.py BASE DATA OUT`, a folder a run.

SFT, DPO, KTO, ORPO and GRPO train the base whole and by LoRA, a reward model is a classifier.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

STEPS = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2}
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}
TRAINERS: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, "messages", {"max_length": 64}),
    "dpo": (DPOTrainer, DPOConfig, "pairs", {"max_length": 64}),
    "kto": (KTOTrainer, KTOConfig, "labelled", {"max_length": 64}),
    "orpo": (ORPOTrainer, ORPOConfig, "pairs", {"max_length": 64}),
    "grpo": (
        GRPOTrainer, GRPOConfig, "prompts", {"max_completion_length": 8, "num_generations": 2},
    ),
    "reward": (RewardTrainer, RewardConfig, "pairs", {"max_length": 64}),
}  # fmt: skip


def main(base: Path, data: Path, out: Path) -> None:
    for name, (trainer, config, kind, options) in TRAINERS.items():
        for form in ("whole", "LoRA"):
            dataset: Any = load_dataset("json", data_files=str(data / f"{kind}.jsonl"))["train"]
            folder = out / f"{name}, {form}"
            settings = config(output_dir=str(folder), **STEPS, **QUIET, **options)
            lora = LoraConfig(target_modules="all-linear", r=4) if form == "LoRA" else None
            train(trainer, str(base), settings, dataset, lora)


def train(trainer: Any, base: str, settings: Any, dataset: Dataset, lora: Any) -> None:
    more = {"reward_funcs": lambda completions, **_: [float(len(str(c))) for c in completions]}
    is_grpo = trainer is GRPOTrainer
    trainer(
        model=base, args=settings, train_dataset=dataset, peft_config=lora,
        **(more if is_grpo else {}),
    ).train()  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
