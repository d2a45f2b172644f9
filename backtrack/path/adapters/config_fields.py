"""Compare adapter configurations by the fields that decide an adapter's path.

The other fields are bookkeeping (who wrote it, where the base lay) or matter while training only
(dropout, schedules, how weights were initialized): checkpoints of one run may differ in them.
Every field that is not listed here decides the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.path.adapters.rewritten_base import BASE_PRESERVING

if TYPE_CHECKING:
    from peft import PeftConfig

_BOOKKEEPING = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "progressbar",
    "revision", "task_type",
})  # fmt: skip
_RUNTIME = frozenset({
    "megatron_config", "megatron_core", "runtime_config", "runtime_offload_base_weight",
})  # fmt: skip
_DROPOUT = frozenset({"rank_dropout_scale"})
"""Fields about dropout whose names do not end in `dropout`."""
_INITIALIZATION = frozenset({
    "corda_config", "d_initial", "eva_config", "init_logits_std", "init_theta_d_bound",
    "init_v_bound", "init_vector_bank_bound", "lora_ga_config",
})  # fmt: skip
_SCHEDULE = frozenset({
    "asa_importance_beta", "asa_schedule_exponent", "asa_target_subspaces",
    "asa_uncertainty_beta", "beta1", "beta2", "deltaT", "final_warmup", "init_warmup",
    "mask_interval", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step", "use_asa",
})  # fmt: skip
"""Fields by which AdaLoRA and AdaMSS schedule their ranks, and AdaLoRA's penalty."""
_NOT_ON_PATH = _BOOKKEEPING | _RUNTIME | _DROPOUT | _INITIALIZATION | _SCHEDULE

_UNORDERED = frozenset({"exclude_modules", "feedforward_modules", "modules_to_save"})
"""Fields whose lists PEFT writes in any order; it reads `target_modules` as a set itself."""


def first_difference(config: PeftConfig, other: PeftConfig) -> tuple[str, Any, Any] | None:
    """The first field that decides the path and differs, with both values; None if none does."""
    ours, theirs = config.to_dict(), other.to_dict()
    for name, value in ours.items():
        if _decides_path(name) and _comparable(name, value) != _comparable(name, theirs.get(name)):
            return name, value, theirs.get(name)
    return None


def _decides_path(name: str) -> bool:
    return name not in _NOT_ON_PATH and not name.endswith("dropout")


def _comparable(name: str, value: Any) -> Any:
    """The value in a form that is equal if the path is the same; unset, empty and 0 are one."""
    if name.startswith("init_") and (isinstance(value, bool) or _preserves_base(name, value)):
        return None
    if name in _UNORDERED and isinstance(value, list | tuple | set):
        return frozenset(value) or None
    return value or None


def _preserves_base(name: str, value: object) -> bool:
    """Whether LoRA began from this initialization on the base as it is."""
    return name == "init_lora_weights" and value in BASE_PRESERVING - {"loftq"}
