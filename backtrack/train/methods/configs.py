"""PEFT configurations by a recipe's `method.kind`: every PEFT method that has a path.

`method.kind` is PEFT's name in lower case; the other keys are fields of that method's
configuration. `backtrack.path.adapters.tuners` lists which methods have a path, and why others
have none. For a name that is a setting of LoRA rather than a method, the error names the setting.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

from backtrack.errors import PlacementError, UsageError
from backtrack.path.adapters.tuners import NO_PATH, TUNERS, tuner_of
from backtrack.recipe import nearest
from backtrack.train.library_fields import typed_fields
from backtrack.train.trajectory.initializations import require_reloadable_initialization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig

KINDS: Mapping[str, PeftType] = {kind.value.lower(): kind for kind in TUNERS}
"""PEFT type by the name of every method that can be trained, besides `full`."""
MILORA, KEEPLORA, FROZEN_A = "milora", "keeplora", "frozen_a"
ADDED_PISSA, ADDED_MILORA = "added_pissa", "added_milora"
INITIALIZATIONS = (MILORA, KEEPLORA, FROZEN_A, ADDED_PISSA, ADDED_MILORA)
"""Initializations of LoRA that PEFT does not have: see `milora` and `initial_factors` here."""

_WITHOUT_PATH: Mapping[str, str] = {kind.value.lower(): why for kind, why in NO_PATH.items()}
_INITIALIZATIONS = (
    "pissa", "olora", "eva", "corda", "lora_ga", "loftq", "orthogonal", "mica",
    *INITIALIZATIONS,
)  # fmt: skip
_SETTINGS: Mapping[str, str] = {
    **{name: f"`kind: lora` with `init_lora_weights: {name}`" for name in _INITIALIZATIONS},
    "dora": "`kind: lora` with `use_dora: true`",
    "loraplus": "`kind: lora` with `loraplus_lr_ratio: 16`",
    "rslora": "`kind: lora` with `use_rslora: true`",
    "qlora": "`kind: lora`, and the base as `{model: NAME, quantization: 4bit}`",
    "kasa": "`kind: lora` with a `kasa_config`",
    "lora-ga": "`kind: lora` with `init_lora_weights: lora_ga`",
    "coft": "`kind: oft` with `coft: true`",
    "bone": "`kind: miss`",
    "bat": "`kind: miss` with `init_weights: bat`",
    "fft": "`kind: full`",
    "sft": "`kind: full` or `kind: lora`, and TRL's settings in section `sft`",
    "grpo": "`kind: full` or `kind: lora`, and TRL's settings in section `grpo`",
}
# Their default targets in PEFT are what the method is for: norms, embeddings, keys and values.
_WITH_DEFAULT_TARGETS = {PeftType.LN_TUNING, PeftType.TRAINABLE_TOKENS, PeftType.IA3}
_TOTAL_UNKNOWN = 1 << 40
"""AdaLoRA's `total_step` until the number of steps is known."""


def kind_fault(kind: object) -> str | None:
    """Return why a recipe cannot train a method of this name; None if it can."""
    name = str(kind)
    if name == "full" or name in KINDS:
        return None
    if name in _SETTINGS:
        return (
            f"method.kind: {name!r} is a setting, not a method of PEFT: write {_SETTINGS[name]}."
        )
    if name in _WITHOUT_PATH:
        return (
            f"method.kind: {name} has no path from the base: {_WITHOUT_PATH[name]}. "
            "Use a method that has one, such as lora or oft."
        )
    known = ["full", *KINDS, *_SETTINGS]
    return f"method.kind: unknown method {name!r}.{nearest(name.lower(), known)}"


def method_faults(kind: str, values: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each fault in a known method's fields.

    Args:
        kind: One of `KINDS`.
        values: The other keys of section `method`.
    """
    faults = []
    fields = dict(values)
    try:
        _require_initialization_without_data(str(fields.get("init_lora_weights", "")))
    except UsageError as error:
        faults.append(f"method: {error}")
        del fields["init_lora_weights"]
    faults += typed_fields(_class_of(kind), _without_unlisted_initialization(fields), "method")[1]
    if faults:
        return faults
    try:
        config = peft_config(kind, fields)
        tuner_of(config)
    except PlacementError as error:
        return [f"method: {error}"]
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        return [f"method: PEFT refuses these values: {' '.join(str(error).split())}"]
    return _faults_peft_accepts(config, fields)


def peft_config(kind: str, values: Mapping[str, Any]) -> PeftConfig:
    """Return PEFT's configuration for a causal language model.

    By default it targets every linear layer but the head. LN tuning, trainable tokens and IA3 have
    PEFT's own default targets. AdaLoRA's `total_step` may be omitted: it is set when the number of
    steps is known.

    Args:
        kind: One of `KINDS`.
        values: The other keys of section `method`.
    """
    typed, _ = typed_fields(_class_of(kind), _without_unlisted_initialization(values), "method")
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if KINDS[kind] not in _WITH_DEFAULT_TARGETS and not typed.get("target_parameters"):
        defaults["target_modules"] = "all-linear"
    if kind == "adalora":
        defaults["total_step"] = _TOTAL_UNKNOWN
    initialization = values.get("init_lora_weights")
    if initialization is not None and initialization not in INITIALIZATIONS:
        typed["init_lora_weights"] = initialization
    return _class_of(kind)(**{**defaults, **typed})


def _require_initialization_without_data(initialization: str) -> None:
    """Refuse initializations that a recipe cannot prepare: CorDA and LoRA-GA need data.

    Raises:
        UsageError: The initialization needs data, or cannot be reloaded.
    """
    require_reloadable_initialization(initialization)
    if initialization in {"corda", "lora_ga"}:
        raise UsageError(
            f"init_lora_weights={initialization!r} is computed from data before training, which "
            "a recipe cannot do. Use it in a script of your own with TrajectoryCallback, or set "
            "`pissa` or the default."
        )


def _class_of(kind: str) -> type[PeftConfig]:
    return PEFT_TYPE_TO_CONFIG_MAPPING[KINDS[kind]]


def _without_unlisted_initialization(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace an `init_lora_weights` that PEFT's type annotation does not list by the default."""
    initialization = str(values.get("init_lora_weights"))
    if initialization in INITIALIZATIONS or re.fullmatch(r"pissa_niter_[0-9]+", initialization):
        return {**values, "init_lora_weights": True}
    return dict(values)


def _faults_peft_accepts(config: Any, values: Mapping[str, Any]) -> list[str]:
    """Return faults that PEFT accepts, but that fail in training or are saved wrongly."""
    if config.peft_type == PeftType.ADALORA and config.target_r >= config.init_r:
        return [
            f"method.target_r: {config.target_r} is not below init_r={config.init_r}, so there is "
            "no rank to remove. Lower it, or use `kind: lora`."
        ]
    initialization = values.get("init_lora_weights")
    if initialization in INITIALIZATIONS and (config.use_dora or config.use_rslora):
        return [
            f"method.init_lora_weights: {initialization} works only without `use_dora` and "
            "`use_rslora`."
        ]
    return []
