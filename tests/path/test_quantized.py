"""Quantized bases (4 bit, 8 bit): attached if that is exact, refused otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftModel, PeftType, get_peft_model

from backtrack.errors import PlacementError, PointError
from backtrack.exporter import export
from backtrack.path.adapters.tuners import TUNERS, require_quantizable
from backtrack.path.models.loading import load_model, probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.run import Quantization
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_manifest
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

NO_WEIGHTS = {"lora-orthogonal", "lora-mica", "lora-tokens", "lora-embedding", "miss-bat"}
"""Initializations that need unquantized weights, and layers that are never quantized."""
SUPPORTED = [
    name
    for name, config in configs().items()
    if TUNERS[PeftType(config.peft_type)].supports_quantized and name not in NO_WEIGHTS
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("quantized") / "base", width=64)


def quantized(base: Path, bits: Quantization) -> Any:
    return load_model(base, "auto", torch.device("cpu"), quantization=bits)


def quantized_run(folder: Path, base: Path, name: str, bits: Quantization) -> Run:
    """A run trained on a quantized base, as QLoRA's are."""
    manifest = make_manifest(base, "lora")
    reference = manifest.base.model_copy(update={"quantization": bits})
    run = Run.create(folder, manifest.model_copy(update={"base": reference}))
    torch.manual_seed(0)
    model = get_peft_model(quantized(base, bits), configs()[name])
    for step in (10, 20):
        jitter(model, 0.05, seed=step)
        write_checkpoint(run, step, lambda path: model.save_pretrained(str(path)))
    return run


@pytest.mark.parametrize("name", SUPPORTED)
def test_both_ends_are_exact_on_a_four_bit_base(name: str, base: Path, tmp_path: Path) -> None:
    run = quantized_run(tmp_path / "run", base, name, "4bit")
    check_ends(run, base, "4bit")


def test_a_base_is_quantized_by_the_settings_of_its_run(base: Path, tmp_path: Path) -> None:
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    assert not torch.equal(probe(quantized(base, settings)), probe(quantized(base, "4bit")))
    check_ends(quantized_run(tmp_path / "run", base, "lora", settings), base, settings)


@pytest.mark.parametrize("name", ["lora", "oft", "ia3", "vera", "miss", "road-1"])
def test_both_ends_are_exact_on_an_eight_bit_base(name: str, base: Path, tmp_path: Path) -> None:
    run = quantized_run(tmp_path / "run", base, name, "8bit")
    check_ends(run, base, "8bit")


def check_ends(run: Run, base: Path, bits: Quantization) -> None:
    placement = Placement(run)
    assert placement.form == "attached"
    start = probe(quantized(base, bits))
    end = probe(PeftModel.from_pretrained(quantized(base, bits), str(run.folder(10))).eval())
    assert not torch.equal(start, end)
    for step, alpha in ((20, 0.4), (10, 1.0), (20, 0.0), (10, 0.7), (10, 1.0)):
        placement.place(Point(step=step, alpha=alpha))
        if alpha in {0.0, 1.0}:
            assert torch.equal(probe(placement.model), start if alpha == 0 else end)


@pytest.mark.parametrize("name", ["lora", "boft"])
def test_a_point_on_a_four_bit_base_is_exported_as_an_adapter(
    name: str, base: Path, tmp_path: Path
) -> None:
    """BOFT too, which on a base in full precision is merged by default."""
    run = quantized_run(tmp_path / "run", base, name, "4bit")
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.4))
    export(run, Point(step=20, alpha=0.4), tmp_path / "out")
    stock = PeftModel.from_pretrained(quantized(base, "4bit"), str(tmp_path / "out")).eval()
    assert torch.equal(probe(stock), probe(placement.model))


def test_merging_into_a_quantized_base_is_refused(base: Path, tmp_path: Path) -> None:
    run = quantized_run(tmp_path / "run", base, "lora", "4bit")
    with pytest.raises(PlacementError, match="quantized again"):
        Placement(run, form="merged")


@pytest.mark.parametrize("name", ["hra", "miss-bat", "shira"])
def test_methods_that_would_be_silently_wrong_are_refused_by_name(
    name: str, base: Path, tmp_path: Path
) -> None:
    run = quantized_run(tmp_path / "run", base, name, "8bit")
    with pytest.raises(PlacementError, match=name.split("-")[0].upper()):
        Placement(run)


def test_profiles_measure_only_lora_on_a_quantized_base(base: Path, tmp_path: Path) -> None:
    low_rank = Placement(quantized_run(tmp_path / "lora", base, "lora", "4bit"))
    strengths = low_rank.strengths(20)
    low_rank.place(Point(step=20, profile="min"))
    assert len(strengths) == 2
    assert min(strengths.values()) > 0
    other = Placement(quantized_run(tmp_path / "miss", base, "miss", "4bit"))
    with pytest.raises(PointError, match="quantized"):
        other.place(Point(step=20, profile="min"))


def test_a_method_that_is_only_merged_is_refused_by_its_own_cause() -> None:
    kasa = LoraConfig(r=2, kasa_config=KasaConfig())
    with pytest.raises(PlacementError, match="packed numbers"):
        require_quantizable(kasa, "attached", "method lora")
    require_quantizable(LoraConfig(r=2), "attached", "method lora")
