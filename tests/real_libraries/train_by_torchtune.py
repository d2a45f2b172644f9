"""What torchtune leaves: `python train_by_torchtune.py BASE DATA OUT`, a folder a run.

Its recipes are the ones it installs, for one device; the model is built by its Llama 3 builders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEADS = {
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size", "intermediate_dim": "intermediate_size",
    "num_layers": "num_hidden_layers", "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
}  # fmt: skip
RUNS = {
    "whole": ("full_finetune_single_device", "llama3_2/1B_full_single_device", "llama3", ()),
    "LoRA": ("lora_finetune_single_device", "llama3_2/1B_lora_single_device", "lora_llama3", (
        "model.lora_attn_modules=[q_proj,v_proj]", "model.lora_rank=4", "model.lora_alpha=8",
    )),
    "LoRA, adapter only": (
        "lora_finetune_single_device", "llama3_2/1B_lora_single_device", "lora_llama3", (
            "model.lora_attn_modules=[q_proj,v_proj]", "model.lora_rank=4",
            "model.lora_alpha=8", "save_adapter_weights_only=True",
        ),
    ),
}  # fmt: skip


def main(base: Path, data: Path, out: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    shape = [f"model.{ours}={config[theirs]}" for ours, theirs in HEADS.items()]
    for name, (recipe, settings, builder, own) in RUNS.items():
        subprocess.run(
            [
                sys.executable, "-m", "torchtune._cli.tune", "run", recipe, "--config", settings,
                "model._component_=torchtune.models.llama3." + builder, *shape, *own,
                "tokenizer._component_=torchtune.modules.transforms.tokenizers."
                "HuggingFaceModelTokenizer",
                f"tokenizer.tokenizer_json_path={base / 'tokenizer.json'}",
                f"tokenizer.tokenizer_config_json_path={base / 'tokenizer_config.json'}",
                "~tokenizer.path", "~tokenizer.max_seq_len",
                "dataset._component_=torchtune.datasets.chat_dataset", "dataset.source=json",
                f"dataset.data_files={data / 'messages.jsonl'}", "dataset.split=train",
                "dataset.conversation_column=messages", "dataset.conversation_style=openai",
                f"checkpointer.checkpoint_dir={base}", "checkpointer.model_type=LLAMA3",
                f"output_dir={out / name}", "device=cpu", "dtype=fp32", "epochs=2",
                "max_steps_per_epoch=2", "batch_size=2", "optimizer=torch.optim.SGD",
                "optimizer.lr=0.01",
            ],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
