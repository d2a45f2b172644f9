"""Where ends are kept, and bases that training grew or untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from backtrack.exporter import export
from backtrack.path.backends import end_storage as ends
from backtrack.path.curves import line
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from backtrack.run.writer import write_checkpoint
from tests.models import (
    jitter,
    make_base,
    make_full_run,
    make_manifest,
    make_peft_run,
    make_tokenizer,
)
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("ends") / "base", tied=request.param)


@pytest.mark.parametrize("keep", ["device", "pinned", "mapped"])
@pytest.mark.parametrize("name", ["full", "lora", "oft", "lora-embedding"])
def test_wherever_the_ends_are_kept_the_points_are_the_same(
    name: str, keep: Any, base: Path, tmp_path: Path
) -> None:
    is_full = name == "full"
    run = (
        make_full_run(tmp_path / "run", base)
        if is_full
        else make_peft_run(tmp_path / "run", base, configs()[name])
    )
    reference = Placement(run, form="merged")
    kept = Placement(run, form="merged", keep=keep)
    assert kept.keep == keep
    for point in (Point(step=20, alpha=0.4), Point(step=10, alpha=1.0), Point.base()):
        reference.place(point)
        kept.place(point)
        assert torch.equal(probe(kept.model), probe(reference.model))


@pytest.mark.parametrize(
    ("available", "expected"), [(10**12, "device"), (1_050, "mapped"), (1_200, "device")]
)
def test_the_fastest_place_that_fits_is_taken(
    available: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert ends.choose_storage(1_000, torch.device("cpu")) == expected


def test_a_mapped_end_takes_no_memory_of_its_own_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tensor = torch.arange(4_000_000, dtype=torch.float32)
    kept = ends.store_end({"a": tensor}, "mapped", torch.device("cpu"))["a"]
    assert not list(tmp_path.iterdir())
    mapped = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}" in mapped
    assert torch.equal(kept, tensor)


def test_ends_in_other_types_are_mixed_in_fp32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, ends_chunk := 1_100_000, generator=generator).bfloat16()
    tuned = base.float() + 0.01 * torch.randn(3, ends_chunk, generator=generator)
    out = torch.empty_like(base)
    line(base, tuned, 0.3, out=out)
    exact = torch.lerp(base.float(), tuned, 0.3)
    assert torch.equal(out, exact.bfloat16())
    line(base, tuned, 1.0, out=out)
    assert torch.equal(out, tuned.bfloat16())


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


def test_a_vocabulary_grown_under_lora_moves_with_the_rest(base: Path, tmp_path: Path) -> None:
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


def test_a_vocabulary_grown_in_full_fine_tuning_moves_with_the_rest(
    base: Path, tmp_path: Path
) -> None:
    model = grown(base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    run = Run.create(tmp_path / "run", make_manifest(base, "full"))
    write_checkpoint(run, 20, lambda path: model.save_pretrained(path))
    check_grown(run, base, model.eval())


@pytest.mark.parametrize("name", ["lora-embedding", "lora-head", "lora-modules", "lora-tokens"])
def test_a_merged_export_of_a_tied_base_is_untied_where_it_must_be(
    name: str, base: Path, tmp_path: Path
) -> None:
    """Stock PEFT merges LoRA on tied embeddings into both, silently wrong."""
    run = make_peft_run(tmp_path / "run", base, configs()[name])
    export(run, Point(step=20, alpha=0.6), tmp_path / "out", form="merged")
    attached = Placement(run, form="attached")
    attached.place(Point(step=20, alpha=0.6))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(probe(loaded), probe(attached.model), atol=2e-6, rtol=0)


def test_an_export_of_many_shards_is_read_by_transformers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backtrack.path.models.saving.MAX_SHARD", "40KB")
    run = make_full_run(tmp_path / "run", base)
    export(run, Point(step=20, alpha=0.6), tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).is_file()
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.6))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(probe(loaded), probe(placement.model))


def test_layers_that_store_weights_transposed_are_merged_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model: Any = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj"], r=4, fan_in_fan_out=True
    )
    run = make_peft_run(tmp_path / "run", tmp_path / "base", config)
    attached, merged = Placement(run), Placement(run, form="merged")
    for placement in (attached, merged):
        placement.place(Point(step=20, alpha=0.4, profile="modules(1,0.5)"))
    torch.testing.assert_close(probe(merged.model), probe(attached.model), atol=1e-5, rtol=0)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    final = PeftModel.from_pretrained(stock, str(run.folder(20))).eval()
    attached.place(run.final)
    assert torch.equal(probe(attached.model), probe(final))
