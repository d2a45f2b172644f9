"""Build the trainer a recipe asks for: TRL's, with model, data and adapter.

What the libraries leave to whoever calls them is done here: AdaLoRA's allocation, EVA's and
MiLoRA's beginnings, rates by layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import initialize_lora_eva_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl.trainer.sft_trainer import SFTTrainer

from backtrack.errors import PlacementError, RecipeError, RunError, UsageError
from backtrack.path.loading import quantizing
from backtrack.path.tuners import require_quantizable
from backtrack.recipe import FullMethod, PeftMethod
from backtrack.train.adalora import RankAllocation, orthogonality, set_total_step
from backtrack.train.additions import Additions
from backtrack.train.check import library_faults
from backtrack.train.data import load_training_data
from backtrack.train.head import show_trained_tokens
from backtrack.train.methods import MILORA, peft_config
from backtrack.train.milora import LeastDirections, doubled
from backtrack.train.settings import sft_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig
    from trl.trainer.sft_config import SFTConfig

    from backtrack.recipe import BaseSection, Recipe


class SupervisedTrainer(Additions, SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer on given texts, with our additions."""


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
    if recipe.method is None or recipe.data is None:
        missing = "method" if recipe.method is None else "data"
        raise UsageError(f"the recipe has no `{missing}`, which training needs. Add it.")
    faults = library_faults({"sft": recipe.sft, "method": recipe.method.model_dump()})
    if faults:
        raise RecipeError(f"the recipe {recipe.name!r}", faults)
    settings = _settings(recipe, folder)
    tokenizer = _from_pretrained(AutoTokenizer, recipe.base)
    data = load_training_data(recipe.data, tokenizer, text_field=settings.dataset_text_field)
    model, adapter = _model_and_adapter(recipe.base, recipe.method)
    try:
        trainer: Any = SupervisedTrainer(
            model, settings, train_dataset=data, processing_class=tokenizer, peft_config=adapter
        )
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"`sft`, `method` and `data` do not fit this model: {' '.join(str(error).split())}"
        ) from error
    if len(trainer.train_dataset) == 0:
        raise UsageError(
            f"no example is left: every completion lies past max_length={settings.max_length} "
            "tokens. Raise `sft.max_length`."
        )
    if settings.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    trainer.learning_rates = recipe.learning_rates
    if isinstance(recipe.method, PeftMethod):
        _begin_adapter(trainer, recipe.method)
    return trainer


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
        adapter = doubled(adapter)
    model = _load_base(base)
    if method.kind == "trainable_tokens" or method.settings.get("trainable_token_indices"):
        show_trained_tokens(model)
    return model, adapter


def _begin_adapter(trainer: Any, method: PeftMethod) -> None:
    """What a method needs after PEFT has made its adapter, and while it is trained."""
    start = method.settings.get("init_lora_weights")
    if start == MILORA:
        trainer.add_callback(LeastDirections(trainer.model))
    elif start == "eva":
        initialize_lora_eva_weights(
            trainer.model, trainer.get_train_dataloader(), show_progress_bar=False
        )
    if method.kind == "adalora":
        set_total_step(trainer.model.peft_config["default"], num_steps(trainer))
        trainer.penalty = orthogonality
        trainer.add_callback(RankAllocation())


def num_steps(trainer: Any) -> int:
    """Optimizer steps a trainer will take."""
    loader = trainer.get_train_dataloader()
    return int(trainer.set_initial_training_values(trainer.args, loader)[-1])


def _settings(recipe: Recipe, folder: Path) -> SFTConfig:
    try:
        return sft_config(recipe.sft, folder, recipe.seed)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"`sft` asks for what this machine has not: {' '.join(str(error).split())}"
        ) from error


def _load_base(base: BaseSection) -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packed: Mapping[str, Any] = quantizing(base.quantization, device)
    return _from_pretrained(AutoModelForCausalLM, base, dtype=base.dtype, **packed)


def _from_pretrained(kind: Any, base: BaseSection, **fields: Any) -> Any:
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
