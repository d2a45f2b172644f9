"""Build TRL's trainer for a recipe, with its model, data and adapter.

Also set up here is what the libraries leave to their caller: AdaLoRA's rank allocation, EVA's and
MiLoRA's initialization, learning rates by layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, initialize_lora_eva_weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    set_seed,
)

from backtrack.errors import PlacementError, RecipeError, RunError, UsageError
from backtrack.path.adapters.tuners import require_quantizable
from backtrack.path.models.loading import quantization_options
from backtrack.recipe import PARADIGMS, FullMethod, PeftMethod
from backtrack.records.places import base_name
from backtrack.train.methods.adalora import AdaLoraCallback, orthogonality, set_total_step
from backtrack.train.methods.configs import INITIALIZATIONS, KEEPLORA, MILORA, peft_config
from backtrack.train.methods.initial_factors import initialize_factors
from backtrack.train.methods.milora import MiloraCallback, double_rank
from backtrack.train.methods.tied_head import expose_trained_tokens
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.data import load_preferences, load_prompts, load_training_data
from backtrack.train.trainers.grpo_saves import DelayedSaveCallback
from backtrack.train.trainers.lengths import drop_overlong, tokenized
from backtrack.train.trainers.paradigms import trainer_class, trainer_config
from backtrack.train.trainers.rewards import reward_function
from backtrack.train.trajectory.initializations import BASE_CHANGING_INITIALIZATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peft import PeftConfig

    from backtrack.recipe import BaseSection, Recipe


_CHECKED_SECTIONS = {*PARADIGMS, "method", "data", "early_stop"}


def build_trainer(recipe: Recipe, folder: Path) -> Any:
    """Build the trainer, ready for its first step.

    Args:
        recipe: The recipe.
        folder: Folder in which TRL may create folders before the run exists.

    Raises:
        RecipeError: Keys for TRL or PEFT are wrong.
        UsageError: The recipe does not fit the model, the data or this machine.
        RunError: The base cannot be loaded.
    """
    method = require_trainable(recipe)
    settings = _settings(recipe, folder)
    limit = settings.max_length if recipe.paradigm == "sft" else None
    drops = recipe.data is not None and recipe.data.overlong == "drop"
    if drops and limit is not None:
        settings.max_length = None  # TRL would cut them
    tokenizer = load_pretrained(AutoTokenizer, recipe.base)
    train_data, eval_data = _data(recipe, tokenizer, settings)
    model, adapter = _model_and_adapter(recipe.base, method)
    if adapter is not None and recipe.adapter_dtype == "base":
        set_seed(recipe.seed)  # as the trainer would before it adds the adapter itself
        model, adapter = get_peft_model(model, adapter, autocast_adapter_dtype=False), None
    fields: dict[str, Any] = {
        "train_dataset": train_data, "eval_dataset": eval_data, "processing_class": tokenizer,
        "peft_config": adapter,
    }  # fmt: skip
    try:
        trainer = _construct(recipe, model, settings, fields)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        # A tracker that is not installed raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):
            raise
        raise UsageError(
            f"`{recipe.paradigm}`, `method` and `data` do not fit: {' '.join(str(error).split())}"
        ) from error
    if drops and limit is not None:
        drop_overlong(trainer, limit)
    if len(trainer.train_dataset) == 0:
        what = "one is longer than" if drops else "completion begins after"
        raise UsageError(
            f"no example is left: every {what} max_length={limit} tokens. Raise `sft.max_length`."
        )
    _extend(trainer, recipe)
    return trainer


def _construct(recipe: Recipe, model: Any, settings: Any, fields: dict[str, Any]) -> Any:
    if recipe.grpo is not None:
        fields["reward_funcs"] = [reward_function(reward) for reward in recipe.rewards]
    elif _needs_copy(recipe, settings):
        # TRL would load it by the base's name alone, whatever the revision.
        fields["ref_model"] = _load_base(recipe.base)
    tokenizer = fields["processing_class"]
    if recipe.orpo is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as TRL's other trainers do
    return trainer_class(recipe.paradigm)(model=model, args=settings, **fields)


def _needs_copy(recipe: Recipe, settings: Any) -> bool:
    """Whether the reference model is not the model at hand, without its adapter or untrained."""
    if not recipe.has_reference or isinstance(recipe.method, PeftMethod):
        return False
    return not settings.precompute_ref_log_probs


def require_trainable(recipe: Recipe) -> FullMethod | PeftMethod:
    """Return the method of a recipe that can be trained, as far as the recipe alone tells.

    Raises:
        UsageError: It has no method or no data, or its sections contradict each other.
        RecipeError: Keys for TRL or PEFT are wrong.
    """
    if recipe.method is None or recipe.data is None:
        missing = "method" if recipe.method is None else "data"
        raise UsageError(f"the recipe has no `{missing}`, which training needs. Add it.")
    faults = library_faults(recipe.model_dump(include=_CHECKED_SECTIONS))
    if faults:
        raise RecipeError(f"the recipe {recipe.name!r}", faults)
    if recipe.paradigm != "sft" and isinstance(recipe.method, PeftMethod):
        _require_computable(recipe.method, recipe.paradigm)
        _require_reference(recipe, recipe.method)
    return recipe.method


def _require_computable(method: PeftMethod, paradigm: str) -> None:
    """Refuse an initialization that is computed from what the paradigm's batches do not have."""
    initialization = method.settings.get("init_lora_weights")
    if initialization == "eva" and paradigm in ("grpo", "orpo"):
        raise UsageError(
            "init_lora_weights='eva' is computed from sequences that the model reads, and TRL's "
            f"batches for `{paradigm}` have none as the model reads them. Use another "
            "initialization."
        )
    if initialization == KEEPLORA:
        raise UsageError(
            "init_lora_weights='keeplora' is computed from the gradient of given completions, and "
            f"`{paradigm}` has none. Train by `sft`, or use another initialization."
        )


def _require_reference(recipe: Recipe, method: PeftMethod) -> None:
    """Refuse a reference model if TRL's, the model without its adapter, is not the base."""
    initialization = str(method.settings.get("init_lora_weights", ""))
    if not recipe.has_reference:
        return
    instead = "" if recipe.grpo is None else "Set `beta` to 0, or "
    if recipe.adapter_dtype == "base":
        raise UsageError(
            "with `adapter_dtype: base`, TRL would take a copy of the adapter for the reference "
            f"of `{recipe.paradigm}`. {instead}leave out `adapter_dtype`."
        )
    if initialization.startswith(BASE_CHANGING_INITIALIZATIONS):
        raise UsageError(
            f"init_lora_weights={initialization!r} subtracts the initial adapter from the base. "
            f"The reference of `{recipe.paradigm}` is the model without its adapter, which would "
            f"not be the base. {instead}use the default initialization."
        )


def _data(recipe: Recipe, tokenizer: Any, settings: Any) -> tuple[Any, Any]:
    """Load the training data, and the evaluation data or None."""
    section = recipe.data
    assert section is not None

    def load(*, is_eval: bool) -> Any:
        if recipe.grpo is not None:
            return load_prompts(section, tokenizer, recipe.rewards, is_eval=is_eval)
        if recipe.paradigm != "sft":
            return load_preferences(section, tokenizer, recipe.paradigm, is_eval=is_eval)
        field = settings.dataset_text_field
        rows = load_training_data(section, tokenizer, text_field=field, is_eval=is_eval)
        return tokenized(rows, tokenizer) if section.answer_end == "eos" else rows

    has_eval = section.eval is not None or section.eval_split is not None
    rows = load(is_eval=False)
    if recipe.kto is not None:  # TRL takes its examples in their order
        rows = rows.shuffle(seed=recipe.seed)
    return rows, load(is_eval=True) if has_eval else None


def _extend(trainer: Any, recipe: Recipe) -> None:
    """Set up what the recipe configures beyond TRL's arguments."""
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    trainer.learning_rates = recipe.learning_rates
    if isinstance(recipe.method, PeftMethod):
        ratio = recipe.method.loraplus_lr_ratio
        if ratio is not None:
            of_b = {"lora_B": ratio * trainer.args.learning_rate}
            trainer.learning_rates = {**recipe.learning_rates, **of_b}
        _initialize_adapter(trainer, recipe.method)
    if recipe.grpo is not None:
        trainer.add_callback(DelayedSaveCallback())
    if recipe.early_stop is not None:
        stop = recipe.early_stop
        trainer.add_callback(EarlyStoppingCallback(stop.patience, stop.min_improvement))


def _model_and_adapter(
    base: BaseSection, method: FullMethod | PeftMethod
) -> tuple[Any, PeftConfig | None]:
    """Load the base for training; return it with the adapter's configuration, if any."""
    if isinstance(method, FullMethod):
        if base.quantization is not None:
            raise UsageError(
                "quantized weights cannot be trained: `method: {kind: full}` needs the base "
                "without `quantization`. Train an adapter, or remove `quantization`."
            )
        return _load_base(base), None
    adapter: Any = peft_config(method.kind, method.settings)
    if base.quantization is not None:
        try:
            require_quantizable(adapter, "attached", f"method {method.kind}")
        except PlacementError as error:
            raise UsageError(str(error)) from error
    if method.settings.get("init_lora_weights") == MILORA:
        adapter = double_rank(adapter)
    model = _load_base(base)
    if method.kind == "trainable_tokens" or method.settings.get("trainable_token_indices"):
        expose_trained_tokens(model)
    return model, adapter


def _initialize_adapter(trainer: Any, method: PeftMethod) -> None:
    """Initialize an adapter beyond what PEFT does, and add what its training needs."""
    initialization = method.settings.get("init_lora_weights")
    if initialization == MILORA:
        trainer.add_callback(MiloraCallback(trainer.model))
    elif initialization in INITIALIZATIONS:
        initialize_factors(trainer, str(initialization))
    elif initialization == "eva":
        initialize_lora_eva_weights(
            trainer.model, trainer.get_train_dataloader(), show_progress_bar=False
        )
    if method.kind == "adalora":
        set_total_step(trainer.model.peft_config["default"], num_steps(trainer))
        trainer.penalty = orthogonality
        trainer.add_callback(AdaLoraCallback())


def num_steps(trainer: Any) -> int:
    """Return the number of optimizer steps a trainer will take."""
    loader = trainer.get_train_dataloader()
    return int(trainer.set_initial_training_values(trainer.args, loader)[-1])


def _settings(recipe: Recipe, folder: Path) -> Any:
    values = {**_evaluation_defaults(recipe), **recipe.trainer_settings}
    if recipe.data is not None and recipe.data.answer_end == "eos":
        values = {"completion_only_loss": True, **values}
    try:
        weights = [reward.weight for reward in recipe.rewards]
        fixed = {"reward_weights": weights} if recipe.grpo is not None else {}
        return trainer_config(recipe.paradigm, values, folder, recipe.seed, **fixed)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"`{recipe.paradigm}` needs what this machine does not have: "
            f"{' '.join(str(error).split())}"
        ) from error


def _evaluation_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return the defaults for evaluating during training, if there is evaluation data."""
    data = recipe.data
    if data is None or (data.eval is None and data.eval_split is None):
        return {}
    defaults: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 0.1}
    if recipe.early_stop is not None:
        # Restore the count of evaluations without improvement after a resume.
        defaults["metric_for_best_model"] = recipe.early_stop.metric
        defaults["restore_callback_states_from_checkpoint"] = True
    return defaults


def _load_base(base: BaseSection) -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantization: Mapping[str, Any] = quantization_options(base.quantization, device)
    return load_pretrained(AutoModelForCausalLM, base, dtype=base.dtype, **quantization)


def load_pretrained(kind: Any, base: BaseSection, **fields: Any) -> Any:
    """Load a base's model, tokenizer or configuration.

    Raises:
        RunError: It is missing or cannot be loaded.
    """
    try:
        return kind.from_pretrained(
            base_name(base.model),  # absolute, since PEFT writes it into adapters
            revision=base.revision,
            trust_remote_code=base.trust_remote_code,
            **fields,
        )
    except (OSError, ValueError) as error:
        raise RunError(
            f"the base {base.model!r} cannot be loaded by {kind.__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
