"""Ends are compared, and weights computed, in one arithmetic whatever the process has set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from backtrack.path.models.exact_arithmetic import full_precision
from backtrack.path.models.loading import differs_by, probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("arithmetic") / "base")


@pytest.fixture
def fast_and_loose() -> Iterator[None]:
    """What scripts set for speed: bf16 inside fp32 products, TF32, autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["lora", "oft"])
def test_a_run_opens_and_moves_the_same_under_autocast(
    name: str, base: Path, tmp_path: Path, fast_and_loose: None
) -> None:
    run = make_peft_run(tmp_path / "run", base, configs()[name])
    point = Point(step=20, alpha=0.5)
    loose = Placement(run, form="merged")
    loose.place(point)
    with full_precision():
        precise = Placement(run, form="merged")
        precise.place(point)
    for found, expected in zip(loose.moving.values(), precise.moving.values(), strict=True):
        assert torch.equal(found, expected)


def test_what_the_process_had_set_is_set_again(fast_and_loose: None) -> None:
    with full_precision():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert not torch.is_autocast_enabled("cpu")
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.is_autocast_enabled("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def with_noise(model: Any, amount: float) -> None:
    """Let the model give other logits each time."""
    model.lm_head.register_forward_hook(
        lambda _module, _given, out: out + amount * torch.randn(out.shape, generator=GENERATOR)
    )


@pytest.mark.parametrize(("amount", "is_allowed"), [(1e-7, True), (1e-2, False)])
def test_a_device_that_does_not_repeat_its_sums_may_differ_by_rounding(
    amount: float, is_allowed: bool, base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    expected = probe(model)
    with_noise(model, amount)
    assert (differs_by(model, expected, 0.0) == 0) == is_allowed


def test_a_device_that_repeats_its_sums_may_not_differ_at_all(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    expected = probe(model)
    assert differs_by(model, expected, 0.0) == 0
    with torch.no_grad():
        model.lm_head.weight[5, 3].add_(1e-6)
    assert differs_by(model, expected, 0.0) > 0
