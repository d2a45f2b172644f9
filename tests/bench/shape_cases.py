"""Folders that people's trainings leave behind, made small: what `shapes.py` puts in its table.

A shape is a base and a folder of checkpoints, steps 10 and 20. Architectures come once as whole
models and once as LoRA on all linear layers; the rest vary the method, what the folder holds, or
how its files are written.
"""

from __future__ import annotations

import functools
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import IA3Config, LoraConfig, OFTConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import jitter, make_base, make_tokenizer

FOREIGN = Path(__file__).resolve().parents[1] / "run" / "foreign"
"""Folders that other trainers' own libraries wrote."""

SIZES: dict[str, Any] = {
    "vocab_size": len(make_tokenizer()), "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK = {
    "first_k_dense_replace": 0, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "q_lora_rank": None,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 16}, "mistral": {}, "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16}, "gemma3_text": {"head_dim": 16}, "phi": {}, "phi3": {},
    "gpt2": {}, "gpt_neox": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "bloom": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "gptj": {"rotary_dim": 8},
    "falcon": {}, "stablelm": {}, "olmo2": {}, "cohere": {}, "granite": {}, "starcoder2": {},
    "glm4": {"head_dim": 16}, "smollm3": {}, "mamba": {"state_size": 8},
    "mixtral": {"num_local_experts": 4}, "qwen3_moe": _MOE, "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
}  # fmt: skip

_TARGETS = {"mamba": {"target_modules": ["in_proj", "x_proj"]}}
"""Where PEFT refuses LoRA on all linear layers."""


@dataclass(frozen=True)
class Folder:
    """A base and the folder of a training from it, as somebody has them on disk."""

    base: Path
    source: Path


Make = Callable[[Path], Folder]


def all_shapes() -> dict[str, Make]:
    """Every shape by name."""
    found: dict[str, Make] = {}
    for name in ARCHITECTURES:
        found[f"{name}, whole"] = functools.partial(_trained, name=name)
        config = _lora(**_TARGETS.get(name, {}))
        found[f"{name}, LoRA"] = functools.partial(_trained, name=name, config=config)
    for name, method in _METHODS.items():
        found[f"llama, {name}"] = functools.partial(_trained, name="llama", config=method())
    for name, change in _CHANGES.items():
        lora = _lora() if name.startswith("LoRA") else None
        found[name] = functools.partial(_changed, change=change, config=lora)
    return found | _OTHERS


def _base(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    known = AutoConfig.for_model(name)
    fields = {k: v for k, v in SIZES.items() if hasattr(known, k)} | ARCHITECTURES[name]
    config = AutoConfig.for_model(name, **fields)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def _lora(**fields: Any) -> LoraConfig:
    settings = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, **fields}
    return LoraConfig(task_type="CAUSAL_LM", **settings)


def _trained(folder: Path, *, name: str, config: Any = None) -> Folder:
    base = _base(folder / "base", name)
    save_steps(folder / "out", base, config)
    return Folder(base, folder / "out")


def save_steps(
    source: Path, base: Path, config: Any = None, dtype: str = "auto", **options: Any
) -> Any:
    """Write steps 10 and 20 as stock libraries do, moved by noise; return the live model."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if config is not None:
        model = get_peft_model(model, config)
    for step in (10, 20):
        jitter(model, 0.05, seed=step, only_trainable=config is not None)
        model.save_pretrained(str(source / f"checkpoint-{step}"), **options)
    return model


_METHODS: dict[str, Callable[[], Any]] = {
    "rsLoRA": lambda: _lora(use_rslora=True),
    "DoRA": lambda: _lora(use_dora=True),
    "LoRA with biases": lambda: _lora(bias="all"),
    "LoRA and a saved head": lambda: _lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "LoRA and saved norms": lambda: _lora(target_modules=["q_proj"], modules_to_save=["norm"]),
    "LoRA on the embedding": lambda: _lora(target_modules=["embed_tokens", "q_proj"]),
    "LoRA and trained tokens": lambda: _lora(trainable_token_indices=[3, 4]),
    "LoRA with a rank pattern": lambda: _lora(rank_pattern={"q_proj": 2}),
    "LoRA with ^model in alpha_pattern": lambda: _lora(
        alpha_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 32}
    ),
    "PiSSA": lambda: _lora(init_lora_weights="pissa"),
    "OFT": lambda: OFTConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], oft_block_size=8
    ),
    "IA3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "VeRA": lambda: VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=8),
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}  # fmt: skip


def _rewrite(
    folder: Path, how: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = next(folder.glob("*model.safetensors"))
    save_file(how(load_file(path)), path, metadata={"format": "pt"})


def _prefix(prefix: str, step: int) -> Callable[[Folder], None]:
    return lambda folder: _rewrite(
        folder.source / f"checkpoint-{step}", lambda ts: {prefix + n: t for n, t in ts.items()}
    )


def _drop_layer(folder: Folder) -> None:
    _rewrite(
        folder.source / "checkpoint-10",
        lambda ts: {n: t for n, t in ts.items() if ".layers.1." not in n},
    )


def _ungathered(folder: Folder) -> None:
    _rewrite(folder.source / "checkpoint-10", lambda ts: {n: t[:0] for n, t in ts.items()})


def _averaged(folder: Folder) -> None:
    for step in (10, 20):
        path = folder.source / f"checkpoint-{step}"
        tensors = load_file(path / "model.safetensors")
        save_file({n: t + 1 for n, t in tensors.items()}, path / "model_ema.safetensors")


def _sharded(folder: Folder) -> None:
    shutil.rmtree(folder.source)
    save_steps(folder.source, folder.base, max_shard_size="40KB")


def _later(folder: Folder) -> None:
    state = {"global_step": 20, "max_steps": 25, "save_steps": 10}
    (folder.source / "checkpoint-20" / "trainer_state.json").write_text(json.dumps(state))
    shutil.copytree(folder.source / "checkpoint-20", folder.source, dirs_exist_ok=True)
    (folder.source / "trainer_state.json").unlink()
    _rewrite(folder.source, lambda ts: {n: t * 1.1 for n, t in ts.items()})


def _named(folder: Folder) -> None:
    for path in folder.source.glob("checkpoint-*"):
        inner = path / "policy"
        inner.mkdir()
        for file in path.glob("adapter_*"):
            file.rename(inner / file.name)


def _one_level_down(folder: Folder) -> None:
    inner = folder.source / "v0-20250101-120000"
    inner.mkdir()
    for path in folder.source.glob("checkpoint-*"):
        path.rename(inner / path.name)


def _contradictory(folder: Folder) -> None:
    for place in (folder.base, *folder.source.glob("checkpoint-*")):
        path = place / "generation_config.json"
        if path.is_file():
            settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
            path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def _pickled(folder: Folder) -> None:
    for path in folder.source.glob("checkpoint-*/*.safetensors"):
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()


def _resumed_elsewhere(folder: Folder) -> None:
    path = folder.source / "checkpoint-10" / "adapter_config.json"
    changes = {
        "peft_version": "0.18.0", "base_model_name_or_path": "/scratch/base", "lora_dropout": 0.1,
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


_CHANGES: dict[str, Callable[[Folder], None]] = {
    "whole, names with _orig_mod.": _prefix("_orig_mod.", 10),
    "whole, names with module.": _prefix("module.", 20),
    "whole, a layer missing in step 10": _drop_layer,
    "whole, step 10 of a divided save": _ungathered,
    "whole, with an averaged copy": _averaged,
    "whole, in shards": _sharded,
    "whole, later weights beside the checkpoints": _later,
    "whole, one folder down": _one_level_down,
    "whole, a generation config not to be saved": _contradictory,
    "whole, pickled": _pickled,
    "LoRA, names with _orig_mod.": _prefix("_orig_mod.", 20),
    "LoRA, a layer missing in step 10": _drop_layer,
    "LoRA, step 10 of a divided save": _ungathered,
    "LoRA, later weights beside the checkpoints": _later,
    "LoRA, in checkpoint-N/NAME": _named,
    "LoRA, one folder down": _one_level_down,
    "LoRA, resumed elsewhere": _resumed_elsewhere,
}


def _changed(folder: Path, *, change: Callable[[Folder], None], config: Any) -> Folder:
    found = _trained(folder, name="llama", config=config)
    change(found)
    return found


def _experts(folder: Path, *, name: str) -> Folder:
    base = _base(folder / "base", name)
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    save_steps(folder / "out", base, _lora(target_modules=["q_proj"], target_parameters=both))
    return Folder(base, folder / "out")


def _other_release(folder: Path) -> Folder:
    """GPT-2's base in the names of its files on the Hub."""
    found = _trained(folder, name="gpt2")
    _rewrite(found.base, lambda ts: {n.removeprefix("transformer."): t for n, t in ts.items()})
    return found


def _typed(folder: Path, *, dtype: str, is_lora: bool = False) -> Folder:
    base = make_base(folder / "base", dtype=dtype)
    save_steps(folder / "out", base, _lora() if is_lora else None)
    return Folder(base, folder / "out")


def _wide_checkpoint(folder: Path) -> Folder:
    base = make_base(folder / "base", dtype="bfloat16")
    save_steps(folder / "out", base, dtype="float32")
    return Folder(base, folder / "out")


def _headed(folder: Path, *, base: bool, steps: tuple[bool, bool]) -> Folder:
    """Whether the head is tied to the embedding: in the base, and in steps 10 and 20."""
    found = make_base(folder / "base", tied=base)
    model: Any = AutoModelForCausalLM.from_pretrained(found)
    for step, is_tied in zip((10, 20), steps, strict=True):
        embedding = model.get_input_embeddings().weight
        own = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.lm_head.weight = embedding if is_tied else own
        model.config.tie_word_embeddings = is_tied
        jitter(model, 0.05, seed=step, only_trainable=False)
        model.save_pretrained(folder / "out" / f"checkpoint-{step}")
    return Folder(found, folder / "out")


def _ties_by_name_only(folder: Path) -> Folder:
    """Configurations that tie a head whose file has another: transformers then unties it."""
    made = _headed(folder, base=False, steps=(False, False))
    for path in (made.base, *made.source.glob("checkpoint-*")):
        config = path / "config.json"
        fields = json.loads(config.read_text()) | {"tie_word_embeddings": True}
        config.write_text(json.dumps(fields))
    return made


def _stacked(folder: Path) -> Folder:
    found = _trained(folder, name="llama", config=_lora())
    return Folder(found.source / "checkpoint-10", found.source)


def _classifier(folder: Path) -> Folder:
    base = make_base(folder / "base")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    for step in (10, 20):
        jitter(model, 0.05, seed=step, only_trainable=False)
        model.save_pretrained(folder / "out" / f"checkpoint-{step}")
    return Folder(base, folder / "out")


def _other_base(folder: Path) -> Folder:
    found = _trained(folder, name="llama")
    return Folder(make_base(folder / "wide", width=64), found.source)


def _kept(folder: Path, *, archive: str, source: str) -> Folder:
    with zipfile.ZipFile(FOREIGN / f"{archive}.zip") as packed:
        packed.extractall(folder)
    return Folder(folder / "base", folder / source)


_OTHERS: dict[str, Make] = {
    "mixtral, LoRA on both projections of experts": functools.partial(_experts, name="mixtral"),
    "qwen3_moe, LoRA on both projections of experts": functools.partial(
        _experts, name="qwen3_moe"
    ),
    "gpt_oss, LoRA on both projections of experts": functools.partial(_experts, name="gpt_oss"),
    "gpt2, base in the Hub's names": _other_release,
    "llama, bf16, whole": functools.partial(_typed, dtype="bfloat16"),
    "llama, bf16, LoRA": functools.partial(_typed, dtype="bfloat16", is_lora=True),
    "llama, fp16, whole": functools.partial(_typed, dtype="float16"),
    "llama, fp32 over a bf16 base": _wide_checkpoint,
    "llama, untied": functools.partial(_headed, base=False, steps=(False, False)),
    "llama, untied in training": functools.partial(_headed, base=True, steps=(False, False)),
    "llama, tied in training": functools.partial(_headed, base=False, steps=(True, True)),
    "llama, untied after step 10": functools.partial(_headed, base=True, steps=(True, False)),
    "llama, tied after step 10": functools.partial(_headed, base=True, steps=(False, True)),
    "llama, tied by its config only": _ties_by_name_only,
    "LoRA over an adapter": _stacked,
    "a classifier": _classifier,
    "another base": _other_base,
    "DeepSpeed ZeRO-2": functools.partial(_kept, archive="deepspeed", source="stage2"),
    "DeepSpeed ZeRO-3": functools.partial(_kept, archive="deepspeed", source="stage3"),
    "torchtune, whole": functools.partial(_kept, archive="torchtune", source="full"),
    "torchtune, LoRA": functools.partial(_kept, archive="torchtune", source="lora"),
}
