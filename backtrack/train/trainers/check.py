"""Check a recipe's keys for TRL and PEFT, before any model or data is loaded.

recipe = load_recipe(path, overrides, checks=[library_faults])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.recipe import PARADIGMS, PeftMethod
from backtrack.train.library_fields import typed_fields
from backtrack.train.methods.configs import kind_fault, method_faults
from backtrack.train.trainers.paradigms import config_class, trainer_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.recipe import Paradigm

_TRL: dict[str, str] = {
    "output_dir": "set `output` and `name` at the top of the recipe",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "resume_from_checkpoint": "resume with `backtrack train RECIPE --resume`",
    "save_only_model": "the Trainer's full state is needed to resume; drop this key",
    "model_init_kwargs": "set `base.dtype`, `base.revision` or `base.trust_remote_code`",
    "trust_remote_code": "set `base.trust_remote_code`",
    "model": "set `base`",
    "train_dataset": "set `data.train`",
    "eval_dataset": "set `data.eval`",
    "peft_config": "set `method`",
    "reward_weights": "set `weight` in `rewards`",
    "reward_funcs": "set `rewards`",
}
_OURS: dict[str, dict[str, str]] = {
    **dict.fromkeys(PARADIGMS, _TRL),
    "method": {
        "base_model_name_or_path": "set `base.model`",
        "revision": "set `base.revision`",
        "peft_type": "set `method.kind`",
        "peft_version": "PEFT writes this itself; drop this key",
        "auto_mapping": "PEFT writes this itself; drop this key",
        "inference_mode": "an adapter that is trained is not in inference mode; drop this key",
    },
}


def library_faults(raw: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each fault in what TRL and PEFT read, and in `data` for them."""
    return [
        *(fault for paradigm in PARADIGMS for fault in _trl_faults(raw, paradigm)),
        *_method_faults(raw.get("method")),
        *_data_faults(raw),
    ]


def _trl_faults(raw: Mapping[str, Any], name: Paradigm) -> list[str]:
    section = raw.get(name)
    if not isinstance(section, dict):
        return []
    fields, faults = _without_ours(section, name)
    try:
        kind = config_class(name)
    except ImportError as error:
        return [f"{name}: the installed TRL does not have it: {_one_line(error)}"]
    faults += typed_fields(kind, fields, name)[1]
    if _evaluates(fields) and not _has_evaluation_data(raw.get("data")):
        faults.append(
            f"{name}.eval_strategy: there is no evaluation data; set `data.eval` or "
            "`data.eval_split`. To measure `objectives` during training, set `watch`."
        )
    if faults:
        return faults
    try:
        # `use_cpu` leaves this machine out of the check: a recipe for a GPU is valid on a laptop.
        trainer_config(name, {**fields, "use_cpu": True}, Path("unused"), seed=0)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        return [f"{name}: TRL refuses these values: {_one_line(error)}"]
    return []


def _evaluates(section: Mapping[str, Any]) -> bool:
    return section.get("eval_strategy", "no") not in {"no", False} or any(
        section.get(key) for key in ("do_eval", "eval_on_start", "load_best_model_at_end")
    )


def _has_evaluation_data(data: object) -> bool:
    return isinstance(data, dict) and bool(data.get("eval") or data.get("eval_split"))


def _data_faults(raw: Mapping[str, Any]) -> list[str]:
    data = raw.get("data")
    if raw.get("early_stop") is not None and not _has_evaluation_data(data):
        return ["early_stop: it needs evaluation data; set `data.eval` or `data.eval_split`."]
    is_sft = all(raw.get(name) is None for name in PARADIGMS if name != "sft")
    if not isinstance(data, dict) or not is_sft:
        return []
    if data.get("prompt") is not None and data.get("completion") is None:
        return ["data: give both `prompt` and `completion`, or neither"]
    return []


def _method_faults(section: object) -> list[str]:
    if not isinstance(section, dict) or "kind" not in section or section["kind"] == "full":
        return []
    fault = kind_fault(section["kind"])
    if fault is not None:
        return [fault]
    theirs = {k: v for k, v in section.items() if k not in PeftMethod.model_fields}
    fields, faults = _without_ours(theirs, "method")
    if section.get("loraplus_lr_ratio") is not None and section["kind"] != "lora":
        faults.append(f"method.loraplus_lr_ratio: {section['kind']} has no `lora_B`; remove it.")
    return faults + method_faults(section["kind"], fields)


def _without_ours(section: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    ours = _OURS[name]
    faults = [f"{name}.{key}: not set here; {ours[key]}." for key in section if key in ours]
    return {key: value for key, value in section.items() if key not in ours}, faults


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
