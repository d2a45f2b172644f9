"""Tiny configurations of every tuner that has a path, for tests and benchmarks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import peft

LINEAR = ["q_proj", "v_proj", "down_proj"]


def _adapter(kind: Any, **fields: Any) -> Any:
    return kind(**{"task_type": "CAUSAL_LM", "target_modules": LINEAR, **fields})


def _lora(**fields: Any) -> Any:
    return _adapter(peft.LoraConfig, **{"r": 4, **fields})


def _oft(**fields: Any) -> Any:
    return _adapter(peft.OFTConfig, **{"oft_block_size": 8, **fields})


def configs() -> dict[str, Any]:
    """New configurations, by name; without AdaMSS where scikit-learn, which it needs, is not."""
    found = _loras() | _rotations() | _others()
    if find_spec("sklearn") is not None:
        subspaces = {"r": 8, "num_subspaces": 2, "subspace_rank": 1}
        found["adamss"] = _adapter(peft.AdamssConfig, **subspaces)
    return found


def _loras() -> dict[str, Any]:
    return {
        "lora": _lora(),
        "lora-rs": _lora(use_rslora=True),
        "lora-patterns": _lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
        "lora-dora": _lora(use_dora=True),
        "lora-bias": _lora(bias="all"),
        "lora-own-bias": _lora(lora_bias=True),
        "lora-modules": _lora(modules_to_save=["norm", "lm_head"]),
        "lora-tokens": _lora(trainable_token_indices=[3, 5]),
        "lora-embedding": _lora(target_modules=["q_proj", "embed_tokens"]),
        "lora-head": _lora(target_modules=["q_proj", "lm_head"]),
        "lora-experts": _lora(target_modules=["q_proj"], target_parameters=["v_proj.weight"]),
        "lora-orthogonal": _lora(init_lora_weights="orthogonal"),
        "lora-mica": _lora(init_lora_weights="mica"),
        "adalora": _adapter(
            peft.AdaLoraConfig, init_r=4, target_r=2, total_step=9, tinit=1, tfinal=1
        ),
    }


def _rotations() -> dict[str, Any]:
    return {
        "oft": _oft(),
        "oft-exact": _oft(use_cayley_neumann=False),
        "oft-shared": _oft(block_share=True),
        "oft-coft": _oft(coft=True, eps=0.2),
        "boft": _adapter(peft.BOFTConfig, boft_block_size=8),
        "hra": _adapter(peft.HRAConfig, r=4),
        "hra-odd": _adapter(peft.HRAConfig, r=3),
        "hra-gram-schmidt": _adapter(peft.HRAConfig, r=4, apply_GS=True),
        "road-1": _adapter(peft.RoadConfig, group_size=16),
        "road-2": _adapter(peft.RoadConfig, group_size=16, variant="road_2"),
        "road-4": _adapter(peft.RoadConfig, group_size=16, variant="road_4"),
        "psoft": _adapter(peft.PsoftConfig, r=4),
        "psoft-free": _adapter(peft.PsoftConfig, r=4, psoft_orth=False),
    }


def _others() -> dict[str, Any]:
    return {
        "vera": _adapter(peft.VeraConfig, r=4),
        "pvera": _adapter(peft.PveraConfig, r=4),
        "loha": _adapter(peft.LoHaConfig, r=4),
        "lokr": _adapter(peft.LoKrConfig, r=4),
        "lokr-both": _adapter(peft.LoKrConfig, r=1, decompose_both=True),
        "gralora": _adapter(peft.GraloraConfig, r=4, gralora_k=2),
        "gralora-hybrid": _adapter(peft.GraloraConfig, r=4, gralora_k=2, hybrid_r=2),
        "randlora": _adapter(peft.RandLoraConfig, r=4),
        "miss": _adapter(peft.MissConfig, r=4),
        "miss-bat": _adapter(peft.MissConfig, r=4, init_weights="bat"),
        "miss-mini": _adapter(peft.MissConfig, r=4, mini_r=4, init_weights="mini"),
        "ia3": _adapter(peft.IA3Config, feedforward_modules=["down_proj"]),
        "fourierft": _adapter(peft.FourierFTConfig, n_frequency=50),
        "waveft": _adapter(peft.WaveFTConfig, n_frequency=50),
        "c3a": _adapter(peft.C3AConfig, block_size=8),
        "shira": _adapter(peft.ShiraConfig, r=4),
        "hira": _adapter(peft.HiraConfig, r=4),
        "delora": _adapter(peft.DeloraConfig, r=4),
        "supertuning": _adapter(peft.SupertuningConfig, sparsity=0.9),
        "supertuning-supra": _adapter(peft.SupertuningConfig, sparsity=0.9, r=2),
        "glora": _adapter(peft.GloraConfig, r=4),
        "peanut": _adapter(peft.PeanutConfig, r=4),
        "tinylora": _adapter(peft.TinyLoraConfig, r=2),
        "beft": _adapter(peft.BeftConfig, target_modules=["q_proj", "v_proj"]),
        "beft-no-bias": _adapter(peft.BeftConfig, target_modules=["down_proj"]),
        "vblora": _adapter(peft.VBLoRAConfig, r=4, vector_length=8, num_vectors=16, topk=2),
        "unilora": _adapter(peft.UniLoraConfig, r=4),
        "lily": _adapter(peft.LilyConfig, r=4),
        "ln-tuning": peft.LNTuningConfig(task_type="CAUSAL_LM"),
        "tokens": peft.TrainableTokensConfig(
            task_type="CAUSAL_LM", token_indices=[3, 5], target_modules=["embed_tokens"]
        ),
        "deft": _adapter(peft.DeftConfig, r=4),
        "frod": _adapter(peft.FrodConfig),
        "osf": _adapter(peft.OSFConfig),
    }
