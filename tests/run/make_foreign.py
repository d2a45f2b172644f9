"""Write what other trainers leave, with the real libraries, for the tests of `adopt`.

    python -m torch.distributed.run --nproc-per-node 2 tests/run/make_foreign.py zero OUT
    python tests/run/make_foreign.py torchtune OUT

`zero` needs DeepSpeed (0.19.8 wrote the files kept in `tests/run/foreign`), `torchtune` needs
torchtune (0.6.1, with torchao 0.9.0). Each writes two checkpoints of a tiny Llama, and beside them
`expected.safetensors` with what the last one holds, by the names transformers gives.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.models import make_base

WIDTH = 16


def batch(seed: int) -> torch.Tensor:
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(seed))


def zero(out: Path) -> None:
    """DeepSpeed's folders for ZeRO stages 1 to 3, in bf16, by two processes."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    rank = torch.distributed.get_rank()
    if rank == 0:
        make_base(out / "base", dtype="bfloat16", width=WIDTH)
    torch.distributed.barrier()
    for stage in (1, 2, 3):
        model = AutoModelForCausalLM.from_pretrained(out / "base")
        config = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
            "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        }  # fmt: skip
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config
        )
        for step in range(1, 5):
            ids = batch(step)[rank : rank + 1]
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
            if step % 2 == 0:
                engine.save_checkpoint(str(out / f"stage{stage}"), tag=f"global_step{step}")
        keep_expected(engine, out / f"stage{stage}", rank)


def keep_expected(engine: Any, folder: Path, rank: int) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    torch.distributed.barrier()
    if rank == 0:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder))
        if "lm_head.weight" in state:
            del state["lm_head.weight"]
        tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "expected.safetensors")


def torchtune(out: Path) -> None:
    """torchtune's folders of two epochs: a whole model, and an adapter beside the merged model."""
    from torchtune import training
    from torchtune.training.checkpointing import FullModelHFCheckpointer

    base = make_base(out / "base", dtype="bfloat16", width=WIDTH)
    # torchtune's Llama has no biases.
    plain = LlamaConfig.from_pretrained(base, attention_bias=False)
    model: Any = LlamaForCausalLM(plain)
    model.to(torch.bfloat16).save_pretrained(base)
    for kind in ("full", "lora"):
        checkpointer = FullModelHFCheckpointer(
            checkpoint_dir=str(base), checkpoint_files=["model.safetensors"],
            model_type="LLAMA3_2", output_dir=str(out / kind),
        )  # fmt: skip
        start = checkpointer.load_checkpoint()[training.MODEL_KEY]
        for epoch in range(2):
            grown = {name: tensor * (1.0625 + epoch) for name, tensor in start.items()}
            state: dict[str, Any] = {training.MODEL_KEY: grown}
            if kind == "lora":
                state |= torchtune_adapter(epoch)
            checkpointer.save_checkpoint(state, epoch=epoch, intermediate_checkpoint=False)


def torchtune_adapter(epoch: int) -> dict[str, Any]:
    from torchtune import training

    generator = torch.Generator().manual_seed(epoch)
    weights = {
        f"layers.{layer}.attn.q_proj.lora_{side}.weight": torch.randn(
            (4, WIDTH) if side == "a" else (WIDTH, 4), generator=generator
        )
        for layer in range(2)
        for side in "ab"
    }
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    return {training.ADAPTER_KEY: weights, training.ADAPTER_CONFIG: config}


def main(kind: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    {"zero": zero, "torchtune": torchtune}[kind](out)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], Path(sys.argv[2]))
