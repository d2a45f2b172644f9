"""The fields of an adapter's configuration that decide its model and its path.

The other fields are bookkeeping (who wrote it, where the base lay) or matter while training only
(dropout, schedules, how weights were initialized): checkpoints of one run may differ in them.
Every field that is not listed here decides the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's name of the file, which makes a folder of weights an adapter."""

BASE_PRESERVING = frozenset({"gaussian", "orthogonal", "eva", "mica", "loftq"})
"""Named initializations that leave the base alone, or (loftq) have no factors to subtract."""

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

_UNORDERED = frozenset({
    "exclude_modules", "feedforward_modules", "modules_to_save", "target_modules",
})  # fmt: skip
"""Fields whose lists PEFT writes in any order."""


def in_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with names sorted where PEFT writes those of a set."""
    return {name: _in_order(name, value) for name, value in config.items()}


def path_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide the path and are set, each in a form that is equal if the path is.

    Args:
        config: An adapter's configuration, as in its file or as PEFT fills it with defaults;
            unset, empty and 0 are one.
    """
    comparable = {name: _comparable(name, config[name]) for name in config if _decides_path(name)}
    return {name: value for name, value in comparable.items() if value}


def first_difference(
    config: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first field that decides the path and differs, with both values; None if none does."""
    ours, theirs = path_fields(config), path_fields(other)
    for name in config:
        if ours.get(name) != theirs.get(name):
            return name, config[name], other.get(name)
    return None


def _decides_path(name: str) -> bool:
    return name not in _NOT_ON_PATH and not name.endswith("dropout")


def _comparable(name: str, value: Any) -> Any:
    if name.startswith("init_") and (isinstance(value, bool) or _preserves_base(name, value)):
        return None
    return _in_order(name, value)


def _in_order(name: str, value: Any) -> Any:
    is_set = name in _UNORDERED and isinstance(value, list | tuple | set)
    return sorted(map(str, value)) if is_set else value


def _preserves_base(name: str, value: object) -> bool:
    """Whether LoRA began from this initialization on the base as it is."""
    return name == "init_lora_weights" and value in BASE_PRESERVING - {"loftq"}
