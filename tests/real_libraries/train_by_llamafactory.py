"""What LLaMA-Factory leaves: `python train_by_llamafactory.py BASE DATA OUT`, a folder a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

# It imports torchaudio at once, for data with sounds; that has no build for CPUs on PyPI.
sys.modules["torchaudio"] = importlib.util.module_from_spec(ModuleSpec("torchaudio", None))

from llamafactory.train.tuner import run_exp  # noqa: E402

SETTINGS: dict[str, Any] = {
    "do_train": True, "template": "default", "cutoff_len": 64, "max_steps": 2, "save_steps": 1,
    "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none",
    "use_cpu": True, "bf16": False, "overwrite_output_dir": True, "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
}  # fmt: skip
DATASETS: dict[str, dict[str, Any]] = {
    "sums": {"file_name": "alpaca.jsonl"},
    "pairs": {
        "file_name": "alpaca_pairs.jsonl", "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "sft, whole": {"stage": "sft", "finetuning_type": "full", "dataset": "sums"},
    "sft, frozen": {"stage": "sft", "finetuning_type": "freeze", "dataset": "sums"},
    "sft, LoRA": {"stage": "sft", "finetuning_type": "lora", "dataset": "sums"},
    "sft, DoRA": {
        "stage": "sft", "finetuning_type": "lora", "use_dora": True, "dataset": "sums"
    },
    "dpo, LoRA": {"stage": "dpo", "finetuning_type": "lora", "dataset": "pairs"},
    "reward, LoRA": {"stage": "rm", "finetuning_type": "lora", "dataset": "pairs"},
}  # fmt: skip


def main(base: Path, data: Path, out: Path) -> None:
    (data / "dataset_info.json").write_text(json.dumps(DATASETS))
    for name, own in RUNS.items():
        run_exp(
            SETTINGS
            | own
            | {"model_name_or_path": str(base), "dataset_dir": str(data)}
            | {"output_dir": str(out / name)}
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
