"""What ms-swift leaves: `python train_by_swift.py BASE DATA OUT`, a folder a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMON = (
    "--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "2",
    "--learning_rate", "1e-3", "--max_length", "128", "--report_to", "none", "--use_cpu", "true",
    "--torch_dtype", "float32", "--model_type", "llama", "--template", "default",
    "--dataset_num_proc", "1", "--dataloader_num_workers", "0", "--split_dataset_ratio", "0",
)  # fmt: skip
RUNS = {
    "sft, whole": ("sft", "messages", "full"),
    "sft, LoRA": ("sft", "messages", "lora"),
    "dpo, LoRA": ("rlhf", "swift_pairs", "lora"),
}


def main(base: Path, data: Path, out: Path) -> None:
    for name, (program, kind, tuner) in RUNS.items():
        command = [
            sys.executable, "-m", "swift.cli.main", program, "--model", str(base),
            "--dataset", str(data / f"{kind}.jsonl"), "--tuner_type", tuner,
            "--output_dir", str(out / name), *COMMON,
        ]  # fmt: skip
        method = ["--rlhf_type", "dpo"] if program == "rlhf" else []
        subprocess.run([*command, *method], check=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
