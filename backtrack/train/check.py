"""Check the keys of a recipe that belong to TRL and PEFT, before anything is loaded.

recipe = load_recipe(path, overrides, checks=[library_faults])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl.trainer.sft_config import SFTConfig

from backtrack.train.methods import kind_fault, method_faults
from backtrack.train.settings import sft_config, typed_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEASURED = "nothing is evaluated during training; list `objectives` and search afterwards"
_OURS: dict[str, dict[str, str]] = {
    "sft": {
        "output_dir": "set `output` and `name` at the top of the recipe",
        "seed": "set `seed` at the top of the recipe",
        "data_seed": "set `seed` at the top of the recipe",
        "resume_from_checkpoint": "resume with `backtrack train RECIPE --resume`",
        "save_only_model": "a run that cannot resume is not kept; drop this key",
        "model_init_kwargs": "set `base.dtype`, `base.revision` or `base.trust_remote_code`",
        "trust_remote_code": "set `base.trust_remote_code`",
        "model": "set `base`",
        "train_dataset": "set `data.train`",
        "peft_config": "set `method`",
        "eval_strategy": _MEASURED,
        "eval_on_start": _MEASURED,
        "do_eval": _MEASURED,
        "load_best_model_at_end": _MEASURED,
        "metric_for_best_model": _MEASURED,
    },
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
    """One sentence for each fault of the keys under `sft` and `method`."""
    return [*_sft_faults(raw.get("sft")), *_method_faults(raw.get("method"))]


def _sft_faults(section: object) -> list[str]:
    if not isinstance(section, dict):
        return []
    theirs, faults = _without_ours(section, "sft")
    faults += typed_fields(SFTConfig, theirs, "sft")[1]
    if faults:
        return faults
    try:
        # What the file says is checked, not this machine: a recipe for a GPU is right on a laptop.
        sft_config({**theirs, "use_cpu": True}, Path("unused"), seed=0)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        return [f"sft: TRL refuses these values: {_one_line(error)}"]
    return []


def _method_faults(section: object) -> list[str]:
    if not isinstance(section, dict) or "kind" not in section or section["kind"] == "full":
        return []
    fault = kind_fault(section["kind"])
    if fault is not None:
        return [fault]
    theirs, faults = _without_ours({k: v for k, v in section.items() if k != "kind"}, "method")
    return faults + method_faults(section["kind"], theirs)


def _without_ours(section: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    ours = _OURS[name]
    faults = [f"{name}.{key}: not set here; {ours[key]}." for key in section if key in ours]
    return {key: value for key, value in section.items() if key not in ours}, faults


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
