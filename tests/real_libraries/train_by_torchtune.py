"""What torchtune leaves: `python train_by_torchtune.py BASE DATA OUT`, a folder a run.

Its own recipes for one device, which it installs, are run; its Llama 3 builders make the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

FIELDS = {
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size", "intermediate_dim": "intermediate_size",
    "num_layers": "num_hidden_layers", "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
}  # fmt: skip
"""torchtune's names of a model's sizes, and transformers'."""
LORA = ("model.lora_attn_modules=[q_proj,v_proj]", "model.lora_rank=4", "model.lora_alpha=8")
RUNS = {
    "whole": ("full", "llama3", ("optimizer_in_bwd=False",)),
    "LoRA": ("lora", "lora_llama3", ("model.apply_lora_to_mlp=True", *LORA)),
    "LoRA, adapter only": ("lora", "lora_llama3", ("save_adapter_weights_only=True", *LORA)),
}


class CharacterTokenizer:
    """The base's tokenizer, as torchtune's recipes call one."""

    pad_id = 0

    def __init__(self, path: str) -> None:
        self._inner = Tokenizer.from_file(path)

    def __call__(self, sample: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        text = "\n".join(message.text_content for message in sample.pop("messages"))
        tokens = self._inner.encode(text).ids
        return {**sample, "tokens": tokens, "mask": [False] * len(tokens)}


def main(base: Path, data: Path, out: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    sizes = [f"model.{ours}={config[theirs]}" for ours, theirs in FIELDS.items()]
    for name, (method, builder, own) in RUNS.items():
        settings = [
            f"model._component_=torchtune.models.llama3.{builder}", *sizes, *own,
            f"tokenizer._component_={Path(__file__).stem}.CharacterTokenizer",
            f"tokenizer.path={base / 'tokenizer.json'}", "~tokenizer.max_seq_len",
            "dataset._component_=torchtune.datasets.chat_dataset", "dataset.source=json",
            f"dataset.data_files={data / 'messages.jsonl'}", "dataset.split=train",
            "dataset.conversation_column=messages", "dataset.conversation_style=openai",
            f"checkpointer.checkpoint_dir={base}", "checkpointer.model_type=LLAMA3",
            f"output_dir={out / name}", "device=cpu", "dtype=fp32", "epochs=2",
            "max_steps_per_epoch=2", "batch_size=2", "gradient_accumulation_steps=1",
            "optimizer._component_=torch.optim.SGD", "optimizer.lr=0.01",
            "metric_logger._component_=torchtune.training.metric_logging.StdoutLogger",
            "~metric_logger.log_dir",
        ]  # fmt: skip
        recipe = f"{method}_finetune_single_device"
        tune = [sys.executable, "-m", "torchtune._cli.tune", "run", recipe]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        subprocess.run(
            [*tune, "--config", f"llama3_2/1B_{method}_single_device", *settings],
            env=environment, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
