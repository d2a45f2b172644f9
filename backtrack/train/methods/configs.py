"""Methods by the name a recipe gives them: every tuner of PEFT that has a path.

A recipe's `method.kind` is PEFT's name in lower case, its other keys are fields of that method's
configuration. `backtrack.path.adapters.tuners` says which tuners have a path and why others have
none; names that are settings of LoRA, not methods, are pointed to the setting.
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
"""Every method that can be trained, besides `full`."""
MILORA = "milora"
"""A start of LoRA that PEFT does not have: see `backtrack.train.methods.milora`."""

_PATHLESS: Mapping[str, str] = {kind.value.lower(): why for kind, why in NO_PATH.items()}
_LORA_INITIALIZATIONS = (
    "pissa",
    "olora",
    "eva",
    "corda",
    "lora_ga",
    "loftq",
    "orthogonal",
    "mica",
    MILORA,
)
_SETTINGS: Mapping[str, str] = {
    **{
        start: f"`kind: lora` with `init_lora_weights: {start}`" for start in _LORA_INITIALIZATIONS
    },
    "dora": "`kind: lora` with `use_dora: true`",
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
_KEEPLORA = (
    "KeepLoRA takes its directions from gradients of the training data with those of the base's "
    "principal subspace removed, which PEFT has no initialization for. The nearest that keeps out "
    "of the principal directions is `kind: lora` with `init_lora_weights: milora`"
)
# Without targets PEFT takes what the method was made for: norms, embeddings, keys and values.
_OWN_TARGETS = {PeftType.LN_TUNING, PeftType.TRAINABLE_TOKENS, PeftType.IA3}
_TOTAL_UNKNOWN = 1 << 40
"""Stands for AdaLoRA's `total_step` until the Trainer knows it."""


def kind_fault(kind: object) -> str | None:
    """Why no recipe can train a method of this name; none if one can."""
    name = str(kind)
    if name == "full" or name in KINDS:
        return None
    if name in _SETTINGS:
        return (
            f"method.kind: {name!r} is a setting, not a method of PEFT: write {_SETTINGS[name]}."
        )
    if name == "keeplora":
        return f"method.kind: {_KEEPLORA}."
    if name in _PATHLESS:
        return (
            f"method.kind: {name} has no path from the base: {_PATHLESS[name]}. "
            "Train a method that has one, such as lora or oft."
        )
    known = ["full", *KINDS, *_SETTINGS]
    return f"method.kind: unknown method {name!r}.{nearest(name.lower(), known)}"


def method_faults(kind: str, values: Mapping[str, Any]) -> list[str]:
    """One sentence for each fault of a known adapter's fields.

    Args:
        kind: One of `KINDS`.
        values: The other keys of section `method`.
    """
    faults = []
    theirs = dict(values)
    try:
        _require_initialization_without_data(str(theirs.get("init_lora_weights", "")))
    except UsageError as error:
        faults.append(f"method: {error}")
        del theirs["init_lora_weights"]
    faults += typed_fields(_class_of(kind), _as_peft_knows(theirs), "method")[1]
    if faults:
        return faults
    try:
        config = peft_config(kind, theirs)
        tuner_of(config)
    except PlacementError as error:
        return [f"method: {error}"]
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        return [f"method: PEFT refuses these values: {' '.join(str(error).split())}"]
    return _own_faults(config, theirs)


def peft_config(kind: str, values: Mapping[str, Any]) -> PeftConfig:
    """PEFT's configuration: a causal language model, every linear layer but the head.

    LN tuning, trainable tokens and IA3 keep PEFT's own targets. AdaLoRA's `total_step` may be left
    out: it is set when the number of steps is known.

    Args:
        kind: One of `KINDS`.
        values: The other keys of section `method`.
    """
    typed, _ = typed_fields(_class_of(kind), _as_peft_knows(values), "method")
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if KINDS[kind] not in _OWN_TARGETS and not typed.get("target_parameters"):
        defaults["target_modules"] = "all-linear"
    if kind == "adalora":
        defaults["total_step"] = _TOTAL_UNKNOWN
    start = values.get("init_lora_weights")
    if start is not None and start != MILORA:
        typed["init_lora_weights"] = start
    return _class_of(kind)(**{**defaults, **typed})


def _require_initialization_without_data(start: str) -> None:
    """Refuse what a recipe cannot prepare: CorDA and LoRA-GA measure the model on data first.

    Raises:
        UsageError: Names the start.
    """
    require_reloadable_initialization(start)
    if start in {"corda", "lora_ga"}:
        raise UsageError(
            f"init_lora_weights={start!r} is prepared on data before training, which a recipe "
            "does not do. Prepare it in a script of your own with TrajectoryCallback, or start "
            "from `pissa` or the default."
        )


def _class_of(kind: str) -> type[PeftConfig]:
    return PEFT_TYPE_TO_CONFIG_MAPPING[KINDS[kind]]


def _as_peft_knows(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without starts that PEFT's declaration does not list."""
    start = str(values.get("init_lora_weights"))
    if start == MILORA or re.fullmatch(r"pissa_niter_[0-9]+", start):
        return {**values, "init_lora_weights": True}
    return dict(values)


def _own_faults(config: Any, values: Mapping[str, Any]) -> list[str]:
    """What PEFT takes, and fails on while training or saves wrongly."""
    if config.peft_type == PeftType.ADALORA and config.target_r >= config.init_r:
        return [
            f"method.target_r: {config.target_r} is not below init_r={config.init_r}, so there is "
            "no rank to take away. Lower it, or use `kind: lora`."
        ]
    if values.get("init_lora_weights") == MILORA and (config.use_dora or config.use_rslora):
        return ["method.init_lora_weights: milora goes without `use_dora` and `use_rslora`."]
    return []
