"""Every method that has a path is trained from a recipe, with what PEFT leaves to the caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backtrack.errors import RecipeError, UsageError
from backtrack.path.adapters.tuners import NO_PATH
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.train.methods.adalora import orthogonality
from backtrack.train.methods.configs import INITIALIZATIONS, KINDS
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.train import train
from tests.path.tuners import LINEAR
from tests.train.conftest import MakeRecipe

# PEFT warns of kernels it does not find and of layers it takes all the same.
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.arange(3, 27).view(2, 12)

FIELDS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "miss": {"r": 4},
    "fourierft": {"n_frequency": 50},
    "waveft": {"n_frequency": 50},
    "c3a": {"block_size": 8},
    "shira": {"r": 4},
    "vblora": {"r": 4, "vector_length": 8, "num_vectors": 16, "topk": 2},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "boft": {"boft_block_size": 8},
    "trainable_tokens": {"token_indices": [3, 5]},
}
"""Settings for methods whose defaults in PEFT are too large for the tiny base."""
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "tokens": {"trainable_token_indices": [3, 5]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    **{
        name: {"init_lora_weights": name}
        for name in ("pissa", "pissa_niter_4", "olora", "eva", *INITIALIZATIONS)
    },
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_tuner_that_has_a_path_is_trained_by_its_name(
    make_recipe: MakeRecipe, base: Path, kind: str
) -> None:
    _train_and_place(make_recipe, base, {"kind": kind, **FIELDS.get(kind, {})})


@pytest.mark.parametrize("variant", sorted(LORA_VARIANTS))
def test_every_variant_of_lora_returns_to_the_base(
    make_recipe: MakeRecipe, base: Path, variant: str
) -> None:
    _train_and_place(
        make_recipe,
        base,
        {"kind": "lora", "r": 4, "target_modules": LINEAR, **LORA_VARIANTS[variant]},
    )


def _train_and_place(make_recipe: MakeRecipe, base: Path, method: dict[str, Any]) -> None:
    """Train three steps, then place the model at both ends of the path."""
    run = train(make_recipe(method=method, sft={"max_steps": 3, "save_strategy": "no"}))
    placement = Placement(run, device="cpu")
    with torch.no_grad():
        start = AutoModelForCausalLM.from_pretrained(base).eval()(TOKENS).logits
        placement.place(Point(step=3, alpha=1.0))
        assert not torch.allclose(placement.model(TOKENS).logits, start, atol=1e-6)
        placement.place(Point(step=3, alpha=0.0))
        torch.testing.assert_close(placement.model(TOKENS).logits, start, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(kind.value.lower() for kind in NO_PATH))
def test_a_method_without_a_path_is_refused_with_the_reason(kind: str) -> None:
    (fault,) = library_faults({"method": {"kind": kind, "num_virtual_tokens": 4}})
    assert fault.startswith(f"method.kind: {kind} has no path from the base: ")


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ({"kind": "lara"}, "unknown method 'lara'. Did you mean 'lora'?"),
        ({"kind": "dora"}, "`kind: lora` with `use_dora: true`"),
        ({"kind": "pissa"}, "`kind: lora` with `init_lora_weights: pissa`"),
        ({"kind": "qlora"}, "quantization: 4bit"),
        ({"kind": "keeplora"}, "`kind: lora` with `init_lora_weights: keeplora`"),
        ({"kind": "oft", "loraplus_lr_ratio": 16}, "oft has no `lora_B`"),
        ({"kind": "vera", "r": 4, "d_inital": 0.1}, "Did you mean 'd_initial'?"),
        ({"kind": "adalora", "init_r": 4, "target_r": 4}, "no rank to remove"),
        ({"kind": "lora", "init_lora_weights": "pisa"}, "got 'pisa'"),
        ({"kind": "lora", "init_lora_weights": "milora", "use_dora": True}, "works only without"),
        ({"kind": "lora", "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_a_method_that_cannot_be_trained_is_refused_by_name(
    method: dict[str, Any], fault: str
) -> None:
    (found,) = library_faults({"method": method})
    assert fault in found


ADALORA = {"kind": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 2}


def test_adalora_reaches_its_target_number_of_ranks(make_recipe: MakeRecipe) -> None:
    run = train(make_recipe(method={**ADALORA, "target_modules": LINEAR}))
    ranks = {
        step: sum(
            int((tensor != 0).sum())
            for name, tensor in read_checkpoint(run, step).items()
            if "lora_E" in name
        )
        for step in run.steps
    }
    # Six layers: 24 ranks initially, 12 as the target.
    assert 12 < ranks[3] <= 24
    assert ranks[6] == ranks[7] == 12
    assert run.manifest.method.settings["total_step"] == 7


@pytest.mark.slow
def test_adalora_resumes_with_its_running_averages(make_recipe: MakeRecipe) -> None:
    def until(step: int) -> Any:
        def stop(progress: Any) -> None:
            if progress.done == step:
                raise KeyboardInterrupt

        return stop

    uninterrupted = train(make_recipe(name="whole", method=ADALORA))
    for step in (3, 6):
        recipe = make_recipe(name=f"cut-{step}", method=ADALORA, sft={"save_steps": 2})
        with pytest.raises(KeyboardInterrupt):
            train(recipe, on_progress=until(step))
        resumed = train(recipe, resume=True)
        assert resumed.entry(7).sha256 == uninterrupted.entry(7).sha256


def test_adalora_is_regularized_as_in_peft(make_recipe: MakeRecipe) -> None:
    trainer = build_trainer(make_recipe(method=ADALORA), Path("unused"))
    model = trainer.model.train()
    batch = {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    theirs = model(**batch).loss - model.base_model.model(**batch).loss
    torch.testing.assert_close(orthogonality(model), theirs)
    trainer.current_gradient_accumulation_steps = 1
    with_penalty = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(with_penalty, model(**batch).loss)


def test_milora_trains_one_half_from_the_smallest_singular_components(
    make_recipe: MakeRecipe, base: Path
) -> None:
    method = {"kind": "lora", "r": 3, "lora_alpha": 6, "init_lora_weights": "milora"}
    run = train(make_recipe(method=method, sft={"weight_decay": 0.5}))
    weight = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    layers = "base_model.model.model.layers.0.mlp.down_proj"
    start = weight["model.layers.0.mlp.down_proj.weight"].detach()
    left, values, right = torch.linalg.svd(start, full_matrices=False)
    tensors = read_checkpoint(run, 7)
    down, up = tensors[f"{layers}.lora_A.weight"], tensors[f"{layers}.lora_B.weight"]
    least = left[:, -3:] @ torch.diag(values[-3:]) @ right[-3:]
    torch.testing.assert_close(-2 * up[:, 3:] @ down[3:], least, atol=1e-5, rtol=1e-3)
    assert not torch.equal(down[:3], down[3:])
    assert run.manifest.method.settings["r"] == 6


def test_trained_tokens_of_a_tied_head_are_in_the_loss(make_recipe: MakeRecipe) -> None:
    method = {"kind": "trainable_tokens", "token_indices": [3, 5]}
    trainer = build_trainer(make_recipe(method=method), Path("unused"))
    model = trainer.model.train()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "trainable_tokens_delta" in name:
                tensor.add_(1.0)
    batch = {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    torch.testing.assert_close(
        trainer.compute_loss(model, dict(batch)), model(**batch).loss, atol=1e-5, rtol=1e-5
    )


def test_an_adapter_of_a_quantized_base_is_trained(make_recipe: MakeRecipe, base: Path) -> None:
    packed = {"model": str(base), "quantization": "4bit"}
    run = train(make_recipe(base=packed, method={"kind": "lora", "r": 4}))
    assert run.base.quantization == "4bit"
    Placement(run, device="cpu").place(run.final)
    with pytest.raises(UsageError, match="quantized weights cannot be trained"):
        train(make_recipe(name="whole", base=packed))


def test_a_parameter_has_the_learning_rate_of_the_expression_in_its_name(
    make_recipe: MakeRecipe, base: Path
) -> None:
    rates = {r"layers\.0\..*lora_B": 0.0, r"layers\.1\.": 1e-3}
    method = {"kind": "lora", "r": 4, "target_modules": LINEAR}
    trainer = build_trainer(make_recipe(method=method, learning_rates=rates), Path("unused"))
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[id(parameter)]: group["lr"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == 12
    for name, rate in found.items():
        frozen = ".0." in name and "lora_B" in name
        assert rate == (0.0 if frozen else 1e-3 if ".1." in name else 1e-2), name

    run = train(make_recipe(method=method, learning_rates=rates))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run.folder(7))
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            assert bool(tensor.any()) == (".1." in name)


def test_a_rate_for_no_layer_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found in no trained parameter's name.*q_proj|lora"):
        train(make_recipe(method={"kind": "lora"}, learning_rates={"layer_0": 1.0}))


def test_an_invalid_regular_expression_is_a_fault_of_the_recipe(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        make_recipe(learning_rates={"(": 1.0})
    with pytest.raises(RecipeError, match="Did you mean 'vera'"):
        train(make_recipe(method={"kind": "verra"}))
