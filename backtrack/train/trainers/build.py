"""Build the trainer a recipe asks for: TRL's, with model, data and adapter.

What the libraries leave to whoever calls them is done here: AdaLoRA's allocation, EVA's and
MiLoRA's beginnings, rates by layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import initialize_lora_eva_weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
)
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from backtrack.errors import PlacementError, RecipeError, RunError, UsageError
from backtrack.path.adapters.tuners import require_quantizable
from backtrack.path.models.loading import quantizing
from backtrack.recipe import FullMethod, PeftMethod
from backtrack.train.methods.adalora import AdaLoraCallback, orthogonality, set_total_step
from backtrack.train.methods.configs import MILORA, peft_config
from backtrack.train.methods.milora import MiloraCallback, double_rank
from backtrack.train.methods.tied_head import expose_trained_tokens
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.data import load_prompts, load_training_data
from backtrack.train.trainers.grpo_saves import DelayedSaveCallback
from backtrack.train.trainers.mixin import TrainerExtensions
from backtrack.train.trainers.rewards import reward_function
from backtrack.train.trainers.settings import grpo_config, sft_config
from backtrack.train.trajectory.initializations import BASE_CHANGING_INITIALIZATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.sft_config import SFTConfig

    from backtrack.recipe import BaseSection, Recipe


CHECKED = {"sft", "grpo", "method", "data", "early_stop"}
"""Sections whose keys the libraries know."""


class ExtendedSFTTrainer(TrainerExtensions, SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer on given completions, with our additions."""


class ExtendedGRPOTrainer(TrainerExtensions, GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer on the model's own completions, with our additions."""


def build_trainer(recipe: Recipe, folder: Path) -> Any:
    """The trainer, ready to take its first step.

    Args:
        recipe: The recipe.
        folder: Where TRL may make folders until the run is there.

    Raises:
        RecipeError: Keys of TRL's or PEFT's are wrong.
        UsageError: The recipe does not fit the model, the data or this machine.
        RunError: The base cannot be loaded.
    """
    method = require_trainable(recipe)
    settings = _settings(recipe, folder)
    tokenizer = load_pretrained(AutoTokenizer, recipe.base)
    data, evaluated = _data(recipe, tokenizer, settings)
    model, adapter = _model_and_adapter(recipe.base, method)
    fields: dict[str, Any] = {
        "train_dataset": data, "eval_dataset": evaluated, "processing_class": tokenizer,
        "peft_config": adapter,
    }  # fmt: skip
    section = "sft" if recipe.grpo is None else "grpo"
    try:
        trainer = _made(recipe, model, settings, fields)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        # A tracker that is not there is said by a RuntimeError without a type of its own.
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):
            raise
        raise UsageError(
            f"`{section}`, `method` and `data` do not fit: {' '.join(str(error).split())}"
        ) from error
    if len(trainer.train_dataset) == 0:
        raise UsageError(
            f"no example is left: every completion lies past max_length={settings.max_length} "
            "tokens. Raise `sft.max_length`."
        )
    _add(trainer, recipe)
    return trainer


def _made(recipe: Recipe, model: Any, settings: Any, fields: dict[str, Any]) -> Any:
    if recipe.grpo is None:
        return ExtendedSFTTrainer(model, settings, **fields)
    functions = [reward_function(reward) for reward in recipe.rewards]
    return ExtendedGRPOTrainer(model, functions, settings, **fields)


def require_trainable(recipe: Recipe) -> FullMethod | PeftMethod:
    """The method of a recipe that can be trained, as far as its words tell.

    Raises:
        UsageError: It has no method or no data, or its parts do not go together.
        RecipeError: Keys of TRL's or PEFT's are wrong.
    """
    if recipe.method is None or recipe.data is None:
        missing = "method" if recipe.method is None else "data"
        raise UsageError(f"the recipe has no `{missing}`, which training needs. Add it.")
    faults = library_faults(recipe.model_dump(include=CHECKED))
    if faults:
        raise RecipeError(f"the recipe {recipe.name!r}", faults)
    if recipe.grpo is not None and isinstance(recipe.method, PeftMethod):
        _require_reference(recipe.grpo, recipe.method)
    return recipe.method


def _require_reference(grpo: Mapping[str, Any], method: PeftMethod) -> None:
    """TRL's reference is the model without its adapter, which must then be the base."""
    start = str(method.settings.get("init_lora_weights", ""))
    if float(grpo.get("beta", 0.0)) and start.startswith(BASE_CHANGING_INITIALIZATIONS):
        raise UsageError(
            f"init_lora_weights={start!r} takes its factors out of the base, so that the model "
            "without its adapter, from which `grpo.beta` measures, would not be the base. Set "
            "`beta` to 0, or start from the default."
        )


def _data(recipe: Recipe, tokenizer: Any, settings: Any) -> tuple[Any, Any]:
    """What is trained on, and what is evaluated on if anything."""
    section = recipe.data
    assert section is not None

    def load(*, is_eval: bool) -> Any:
        if recipe.grpo is not None:
            return load_prompts(section, tokenizer, recipe.rewards, is_eval=is_eval)
        field = settings.dataset_text_field
        return load_training_data(section, tokenizer, text_field=field, is_eval=is_eval)

    is_evaluated = section.eval is not None or section.eval_split is not None
    return load(is_eval=False), load(is_eval=True) if is_evaluated else None


def _add(trainer: Any, recipe: Recipe) -> None:
    """What the recipe asks for beside TRL's own."""
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    trainer.learning_rates = recipe.learning_rates
    if isinstance(recipe.method, PeftMethod):
        _begin_adapter(trainer, recipe.method)
    if recipe.grpo is not None:
        trainer.add_callback(DelayedSaveCallback())
    if recipe.early_stop is not None:
        stop = recipe.early_stop
        trainer.add_callback(EarlyStoppingCallback(stop.patience, stop.min_improvement))


def _model_and_adapter(
    base: BaseSection, method: FullMethod | PeftMethod
) -> tuple[Any, PeftConfig | None]:
    """The base as training takes it, and the adapter that is to be put on it."""
    if isinstance(method, FullMethod):
        if base.quantization is not None:
            raise UsageError(
                "packed weights are not trained: `method: {kind: full}` needs the base without "
                "`quantization`. Train an adapter, or drop it."
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


def _begin_adapter(trainer: Any, method: PeftMethod) -> None:
    """What a method needs after PEFT has made its adapter, and while it is trained."""
    start = method.settings.get("init_lora_weights")
    if start == MILORA:
        trainer.add_callback(MiloraCallback(trainer.model))
    elif start == "eva":
        initialize_lora_eva_weights(
            trainer.model, trainer.get_train_dataloader(), show_progress_bar=False
        )
    if method.kind == "adalora":
        set_total_step(trainer.model.peft_config["default"], num_steps(trainer))
        trainer.penalty = orthogonality
        trainer.add_callback(AdaLoraCallback())


def num_steps(trainer: Any) -> int:
    """Optimizer steps a trainer will take."""
    loader = trainer.get_train_dataloader()
    return int(trainer.set_initial_training_values(trainer.args, loader)[-1])


def _settings(recipe: Recipe, folder: Path) -> SFTConfig | GRPOConfig:
    section = "sft" if recipe.grpo is None else "grpo"
    values = {**_evaluating(recipe), **(recipe.sft if recipe.grpo is None else recipe.grpo)}
    try:
        if recipe.grpo is None:
            return sft_config(values, folder, recipe.seed)
        weights = [reward.weight for reward in recipe.rewards]
        return grpo_config(values, folder, recipe.seed, weights)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"`{section}` asks for what this machine has not: {' '.join(str(error).split())}"
        ) from error


def _evaluating(recipe: Recipe) -> dict[str, Any]:
    """Settings that an evaluation during training has unless the recipe says other."""
    data = recipe.data
    if data is None or (data.eval is None and data.eval_split is None):
        return {}
    evaluating: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 0.1}
    if recipe.early_stop is not None:
        # The count of evaluations without improvement goes on after a resume.
        evaluating["metric_for_best_model"] = recipe.early_stop.metric
        evaluating["restore_callback_states_from_checkpoint"] = True
    return evaluating


def _load_base(base: BaseSection) -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packed: Mapping[str, Any] = quantizing(base.quantization, device)
    return load_pretrained(AutoModelForCausalLM, base, dtype=base.dtype, **packed)


def load_pretrained(kind: Any, base: BaseSection, **fields: Any) -> Any:
    """Load a base's model, tokenizer or configuration.

    Raises:
        RunError: It is not there, or cannot be loaded.
    """
    try:
        return kind.from_pretrained(
            _source(base),
            revision=base.revision,
            trust_remote_code=base.trust_remote_code,
            **fields,
        )
    except (OSError, ValueError) as error:
        raise RunError(
            f"the base {base.model!r} cannot be loaded by {kind.__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _source(base: BaseSection) -> str:
    """Folder or Hub name; a folder in full, since PEFT writes it into every adapter."""
    folder = Path(base.model)
    return str(folder.resolve()) if folder.is_dir() else base.model
