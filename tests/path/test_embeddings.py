"""Bases whose vocabulary grew in training, or whose head must be untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import (
    jitter,
    make_base,
    make_manifest,
    make_peft_run,
)
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("ends") / "base", tied=request.param)


def grown(base: Path, *, rows: int = 3) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    return model


def check_grown(run: Run, base: Path, stock: Any) -> None:
    original = AutoModelForCausalLM.from_pretrained(base)
    tokens = original.config.vocab_size
    for form in ("attached", "merged"):
        if form == "attached" and run.manifest.method.kind == "full":
            continue
        placement = Placement(run, form=form)
        for point in (Point(step=20, alpha=0.4), Point.base()):
            placement.place(point)
        torch.testing.assert_close(
            probe(placement.model, tokens), probe(original), atol=1e-6, rtol=0
        )
        placement.place(run.final)
        assert placement.model.get_input_embeddings().weight.shape[0] == tokens + 3
        torch.testing.assert_close(probe(placement.model), probe(stock), atol=2e-6, rtol=0)


def test_a_vocabulary_grown_under_lora_moves_with_the_other_weights(
    base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=4)
    model = get_peft_model(grown(base), config)
    jitter(model, 0.05, seed=1)
    embedding: Any = model.get_input_embeddings()
    jitter(embedding, 0.05, seed=2, only_trainable=False)
    run = Run.create(tmp_path / "run", make_manifest(base, "lora"))
    write_checkpoint(
        run, 20, lambda path: model.save_pretrained(str(path), save_embedding_layers=True)
    )
    check_grown(run, base, model.eval())


def test_the_card_of_an_adapter_on_a_grown_vocabulary_loads_it(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(grown(base), LoraConfig(target_modules=["q_proj"], r=4))
    jitter(model, 0.05, seed=1)
    run = Run.create(tmp_path / "run", make_manifest(base, "lora"))
    write_checkpoint(
        run, 20, lambda path: model.save_pretrained(str(path), save_embedding_layers=True)
    )
    folder = tmp_path / "adapter"
    export(run, run.final, folder, form="adapter", device="cpu")
    card = (folder / "README.md").read_text()
    loaded: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("THIS FOLDER", str(folder)), loaded)
    assert torch.equal(probe(loaded["model"].eval()), probe(model.eval()))


def test_a_vocabulary_grown_in_full_fine_tuning_moves_with_the_other_weights(
    base: Path, tmp_path: Path
) -> None:
    model = grown(base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    run = Run.create(tmp_path / "run", make_manifest(base, "full"))
    write_checkpoint(run, 20, lambda path: model.save_pretrained(path))
    check_grown(run, base, model.eval())


@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]])
def test_a_vocabulary_grown_under_modules_to_save_moves_with_the_other_weights(
    modules: list[str], base: Path, tmp_path: Path
) -> None:
    """PEFT writes such a module three times; its copies of the base's are not the base's."""
    out = tmp_path / "out"
    model = get_peft_model(
        grown(base), LoraConfig(target_modules=["q_proj"], r=4, modules_to_save=modules)
    )
    for step in (10, 20):
        jitter(model, 0.05, seed=step)
        model.save_pretrained(str(out / f"checkpoint-{step}"))
    run = adopt(out, base=str(base), runs=tmp_path / "runs")
    check_grown(run, base, model.eval())


def test_whole_models_with_added_tokens_are_adopted_and_exported(
    base: Path, tmp_path: Path
) -> None:
    model = grown(base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "tuned")
    run = adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs")
    export(run, Point(step=1, alpha=1.0), tmp_path / "export", device="cpu")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    assert torch.equal(probe(loaded), probe(model.eval()))


def test_padding_rows_that_training_removed_are_removed_at_every_point(
    base: Path, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    rows = model.config.vocab_size - 5
    model.resize_token_embeddings(rows)
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "tuned")
    run = adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    assert torch.equal(probe(placement.model), probe(model.eval()))
    placement.place(Point.base())
    original = AutoModelForCausalLM.from_pretrained(base)
    torch.testing.assert_close(probe(placement.model), probe(original, rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", ["lora-embedding", "lora-head", "lora-modules", "lora-tokens", "lora-both"]
)
def test_a_merged_export_is_untied_if_training_moved_embedding_and_head_apart(
    name: str, base: Path, tmp_path: Path
) -> None:
    """Stock PEFT merges LoRA on tied embeddings into both, silently wrong."""
    both = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    run = make_peft_run(tmp_path / "run", base, {**configs(), "lora-both": both}[name])
    export(run, Point(step=20, alpha=0.6), tmp_path / "out", form="merged")
    attached = Placement(run, form="attached")
    attached.place(Point(step=20, alpha=0.6))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(probe(loaded), probe(attached.model), atol=2e-6, rtol=0)
