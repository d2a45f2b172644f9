"""Initializations that rewrite the base: alpha 0 is still the original base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM

from backtrack.errors import PlacementError, UsageError
from backtrack.exporter import export
from backtrack.path.curves import rounding
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_manifest
from tests.path.tuners import LINEAR

pytestmark = pytest.mark.filterwarnings("ignore")

INITS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
        "use_rslora": True,
    },
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
    "pissa-extra": {
        "init_lora_weights": "pissa",
        "bias": "all",
        "modules_to_save": ["norm"],
    },
    "olora": {"init_lora_weights": "olora"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "corda": {"init_lora_weights": "corda"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "kasa": {"kasa_config": peft.KasaConfig()},
}
REPRODUCIBLE = ["pissa", "pissa-patterns", "pissa-dora", "pissa-extra", "olora"]
"""Initializations whose factors can be computed again."""
SAVED_FIRST = ["pissa_niter", "corda", "lora_ga"]
"""Initializations that need the initial adapter."""


class Trained:
    """A simulated training: the initial adapter, two checkpoints, and their true logits."""

    def __init__(self, folder: Path, base: Path, name: str) -> None:
        self.folder, self.base = folder, base
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_pretrained(base)
        config = prepared(plain, LoraConfig(
            task_type="CAUSAL_LM", target_modules=LINEAR, r=4, **INITS[name]
        ))  # fmt: skip
        self.model: Any = get_peft_model(plain, config)
        self.model.save_pretrained(str(folder / "initial"))
        self.truth: dict[int, torch.Tensor] = {}
        for step in (10, 20):
            jitter(self.model, 0.05, seed=step)
            self.model.save_pretrained(str(folder / f"step-{step}"))
            self.truth[step] = probe(self.model.eval())

    def run(self, *, initial: Path | None = None) -> Run:
        manifest = make_manifest(self.base, "lora")
        named = manifest.model_copy(update={"initial": str(initial) if initial else None})
        run = Run.create(self.folder / f"run-{initial is not None}", named)
        for step in (10, 20):
            write_checkpoint(run, step, lambda path, step=step: self.copy(step, path))  # type: ignore[misc]
        return run

    def copy(self, step: int, target: Path) -> None:
        for path in (self.folder / f"step-{step}").iterdir():
            (target / path.name).write_bytes(path.read_bytes())


def prepared(model: Any, config: LoraConfig) -> LoraConfig:
    """Run the measurements that CorDA and LoRA-GA make before they start."""
    ids = torch.randint(80, (4, 16), generator=torch.Generator().manual_seed(0))
    if config.init_lora_weights == "corda":
        config.corda_config = CordaConfig(corda_method="kpm")
        preprocess_corda(model, config, run_model=lambda: run_each(model, ids))
    if str(config.init_lora_weights) == "lora_ga":
        config.lora_ga_config = peft.LoraGAConfig()
        preprocess_loraga(model, config, lambda: model(ids, labels=ids).loss.backward())
        model.zero_grad()
    return config


def run_each(model: Any, ids: torch.Tensor) -> None:
    for row in ids:
        model(row[None])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewritten") / "base"
    return make_base(folder, dtype=request.param, tied=False)


def check(run: Run, trained: Trained) -> Placement:
    placement = Placement(run)
    original = AutoModelForCausalLM.from_pretrained(trained.base)
    start, tolerance = probe(original), rounding(original.dtype)
    for step, alpha in ((20, 0.5), (10, 1.0), (20, 0.0), (20, 1.0), (10, 0.0)):
        placement.place(Point(step=step, alpha=alpha))
        logits = probe(placement.model)
        if alpha == 0:
            assert torch.equal(logits, start)
        if alpha == 1:
            truth = trained.truth[step]
            moved = float((truth - start).abs().max())
            assert float((logits - truth).abs().max()) < min(tolerance, moved / 10)
    return placement


@pytest.mark.parametrize("name", REPRODUCIBLE)
def test_without_the_initial_adapter_both_ends_are_right(
    name: str, base: Path, tmp_path: Path
) -> None:
    trained = Trained(tmp_path, base, name)
    placement = check(trained.run(), trained)
    assert (placement.form, placement.curve) == ("attached", "native")


@pytest.mark.parametrize("name", [*SAVED_FIRST, "pissa", "olora"])
def test_with_the_initial_adapter_both_ends_are_right(
    name: str, base: Path, tmp_path: Path
) -> None:
    trained = Trained(tmp_path, base, name)
    check(trained.run(initial=tmp_path / "initial"), trained)


@pytest.mark.parametrize("name", SAVED_FIRST)
def test_a_missing_initial_adapter_is_named(name: str, base: Path, tmp_path: Path) -> None:
    run = Trained(tmp_path, base, name).run()
    with pytest.raises(PlacementError, match=r"before the first step.*--initial"):
        Placement(run)
    with pytest.raises(PlacementError, match="--initial"):
        Placement(run, form="merged", curve="line")


def test_an_adopted_run_takes_its_initial_adapter_later(base: Path, tmp_path: Path) -> None:
    trained = Trained(tmp_path, base, "pissa_niter")
    source = tmp_path / "step-20"
    runs = tmp_path / "runs"
    run = adopt(source, base=str(base), runs=runs)
    with pytest.raises(PlacementError, match="--initial"):
        Placement(run)
    check_final(adopt(source, base=str(base), runs=runs, initial=tmp_path / "initial"), trained)
    with pytest.raises(UsageError, match="before the first step"):
        adopt(source, base=str(base), runs=runs, initial=tmp_path)


def test_half_strength_is_the_middle_of_the_original_base_and_the_trained_model(
    base: Path, tmp_path: Path
) -> None:
    trained = Trained(tmp_path, base, "pissa")
    placement = Placement(trained.run(), form="merged", curve="native")
    placement.place(Point(step=20, alpha=0.5))
    mine = dict(placement.model.named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    end = dict(trained.model.merge_and_unload().named_parameters())
    spread = 1e-6 if placement.model.dtype == torch.float32 else 4e-3
    for name, weight in mine.items():
        middle = (start[name].float() + end[name].float()) / 2
        torch.testing.assert_close(weight.float(), middle, atol=spread, rtol=spread)


def test_a_point_is_exported_as_plain_lora_on_the_original_base(
    base: Path, tmp_path: Path
) -> None:
    trained = Trained(tmp_path, base, "pissa-patterns")
    run = trained.run()
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.6))
    export(run, Point(step=20, alpha=0.6), tmp_path / "out")
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.init_lora_weights, config.r, config.rank_pattern) == (True, 8, {})
    original = AutoModelForCausalLM.from_pretrained(base)
    stock = PeftModel.from_pretrained(original, str(tmp_path / "out")).eval()
    assert torch.equal(probe(stock), probe(placement.model))


def test_an_adapter_that_peft_converted_is_a_plain_lora(base: Path, tmp_path: Path) -> None:
    trained = Trained(tmp_path, base, "pissa")
    converted = tmp_path / "step-20"
    trained.model.save_pretrained(
        str(converted), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    run = Run.create(tmp_path / "run", make_manifest(base, "lora"))
    write_checkpoint(run, 20, lambda path: trained.copy(20, path))
    check_final(run, trained)


def check_final(run: Run, trained: Trained) -> None:
    placement = Placement(run)
    original = AutoModelForCausalLM.from_pretrained(trained.base)
    placement.place(run.final)
    gap = float((probe(placement.model) - trained.truth[20]).abs().max())
    assert gap < rounding(original.dtype)
    placement.place(Point.base())
    assert torch.equal(probe(placement.model), probe(original))


@pytest.mark.parametrize("saved_as", ["pissa_backup", "pissa_converted"])
def test_the_pissa_folders_of_llama_factory_are_distinguished(
    saved_as: str, base: Path, tmp_path: Path
) -> None:
    """All three say `init_lora_weights: true`; only shapes and names differ."""
    trained = Trained(tmp_path, base, "pissa_niter")
    out = tmp_path / "out"
    if saved_as == "pissa_backup":
        trained.model.save_pretrained(str(out / saved_as))
    else:
        trained.model.save_pretrained(
            str(out / saved_as), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    (tmp_path / "initial").rename(out / "pissa_init")
    for folder in (out / "pissa_init", out / saved_as):
        claim_plain(folder)
    run = adopt(out / saved_as, base=str(base), runs=tmp_path / "runs")
    check_final(run, trained)


def claim_plain(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"init_lora_weights": True}))


def test_a_backup_without_its_initial_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    trained = Trained(tmp_path, base, "pissa")
    (tmp_path / "step-20").rename(tmp_path / "pissa_backup")
    claim_plain(tmp_path / "pissa_backup")
    assert trained.truth
    run = adopt(tmp_path / "pissa_backup", base=str(base), runs=tmp_path / "runs")
    with pytest.raises(PlacementError, match="pissa_init"):
        Placement(run)


def test_a_base_that_kasa_truncates_moves_on_the_line(base: Path, tmp_path: Path) -> None:
    trained = Trained(tmp_path, base, "kasa")
    placement = check(trained.run(), trained)
    assert (placement.form, placement.curve) == ("merged", "line")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, LoftQ loads")
def test_loftq_says_that_it_needs_a_gpu(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, r=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "adapter_config.json"
    claimed = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    path.write_text(json.dumps(json.loads(path.read_text()) | claimed))
    run = adopt(tmp_path / "saved", base=str(base), runs=tmp_path / "runs")
    with pytest.raises(PlacementError, match="GPU"):
        Placement(run)


def test_eva_leaves_the_base_alone(base: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, r=4, init_lora_weights="eva")
    model = get_peft_model(plain, config)
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(80, (4, 16), generator=generator)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    peft.initialize_lora_eva_weights(model, [batch] * 4, show_progress_bar=False)
    jitter(model, 0.05, seed=1)
    run = Run.create(tmp_path / "run", make_manifest(base, "lora"))
    write_checkpoint(run, 20, lambda path: model.save_pretrained(str(path)))
    placement = Placement(run)
    placement.place(run.final)
    original = AutoModelForCausalLM.from_pretrained(base)
    stock = PeftModel.from_pretrained(original, str(run.folder(20))).eval()
    assert torch.equal(probe(placement.model), probe(stock))
