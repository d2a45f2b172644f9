"""Multipliers of hand-made layers with known answers, and profiles on real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backtrack.errors import PointError
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.path.profiles import (
    Strength,
    block_of,
    block_strengths,
    multipliers,
    parse,
    part_of,
)
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_full_run, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = (
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.2.self_attn.q_proj",
    "model.layers.2.mlp.up_proj",
    "lm_head",
)
Q, UP = "self_attn.q_proj", "mlp.up_proj"


def scaled(text: str, strengths: Any = None, law: Any = "linear") -> dict[str, float]:
    return multipliers(parse(text), MODULES, strengths or {}, law)


@pytest.mark.parametrize(
    ("module", "block", "part"),
    [
        ("model.layers.12.self_attn.q_proj", 12, "attention"),
        ("transformer.h.3.mlp.c_fc", 3, "mlp"),
        ("transformer.h.3.attn.c_attn", 3, "attention"),
        ("gpt_neox.layers.0.attention.dense", 0, "attention"),
        ("model.layers.1.block_sparse_moe.experts.4.w1", 1, "mlp"),
        ("model.layers.1.input_layernorm", 1, "other"),
        ("model.embed_tokens", None, "other"),
    ],
)
def test_a_modules_name_says_its_block_and_part(module: str, block: int | None, part: str) -> None:
    assert (block_of(module), part_of(module)) == (block, part)


def test_depth_is_linear_from_the_first_block_to_the_last() -> None:
    found = scaled("depth(0.5,1)")
    assert [found[f"model.layers.{b}.{Q}"] for b in range(3)] == [0.5, 0.75, 1.0]
    assert (found["model.embed_tokens"], found["lm_head"]) == (0.5, 1.0)


def test_blocks_are_thirds() -> None:
    found = scaled("blocks(0.2,0.4,0.8)")
    assert [found[f"model.layers.{b}.{UP}"] for b in range(3)] == [0.2, 0.4, 0.8]
    assert (found["model.embed_tokens"], found["lm_head"]) == (0.2, 0.8)


def test_modules_separate_attention_from_the_mlp() -> None:
    found = scaled("modules(1,0.5)")
    assert (found[f"model.layers.1.{Q}"], found[f"model.layers.1.{UP}"]) == (1.0, 0.5)
    assert found["lm_head"] == 0.75


def strengths_of(per_block: tuple[float, ...]) -> dict[str, Strength]:
    """Blocks of two modules, one four times the size of the other, of the strengths given."""
    found = {}
    for block, s in enumerate(per_block):
        found[f"model.layers.{block}.{Q}"] = Strength(1.0 * s**2, 1.0)
        found[f"model.layers.{block}.{UP}"] = Strength(4.0 * s**2, 4.0)
    return found


def test_a_blocks_strength_is_its_delta_relative_to_its_base() -> None:
    sizes = {
        f"model.layers.0.{Q}": Strength(9.0, 1.0),
        f"model.layers.0.{UP}": Strength(7.0, 3.0),
        "lm_head": Strength(99.0, 1.0),
    }
    assert block_strengths(sizes) == {0: 2.0}


@pytest.mark.parametrize(
    ("profile", "reached"), [("safe", [0.1, 0.2, *[0.3] * 5]), ("level", [0.3] * 7)]
)
def test_safe_lowers_blocks_to_the_mean_of_the_first_five_and_level_raises_them_too(
    profile: str, reached: list[float]
) -> None:
    modules = tuple(f"model.layers.{b}.{Q}" for b in range(7))
    per_block = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.2)
    found = multipliers(parse(profile), modules, strengths_of(per_block), "linear")
    scaled_to = [found[m] * s for m, s in zip(modules, per_block, strict=True)]
    assert scaled_to == pytest.approx(reached)


def test_min_brings_every_block_to_the_least() -> None:
    found = scaled("min", strengths_of((0.2, 0.1, 0.4)))
    assert found[f"model.layers.0.{Q}"] == pytest.approx(0.5)
    assert found[f"model.layers.1.{UP}"] == pytest.approx(1.0)
    assert found[f"model.layers.2.{Q}"] == pytest.approx(0.25)
    assert found["lm_head"] == 1.0


def test_a_generators_multiplier_is_squared_since_it_follows_the_root() -> None:
    found = scaled("min", strengths_of((0.2, 0.1, 0.4)), "root")
    assert found[f"model.layers.2.{Q}"] == pytest.approx(0.25**2)


def test_a_block_that_does_not_move_is_left_alone() -> None:
    found = scaled("min", strengths_of((0.2, 0.0, 0.4)))
    assert found[f"model.layers.1.{Q}"] == 1.0
    assert found[f"model.layers.2.{Q}"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text", ["wavy", "depth", "depth(1)", "depth(1,-1)", "blocks(1,2,x)", "safe(1)", "min()x"]
)
def test_an_unknown_profile_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(PointError, match=r"depth\(0.5,1\)|takes"):
        parse(text)


def test_a_profiles_spelling_is_one() -> None:
    assert str(parse("blocks(0.50,1.0,1)")) == "blocks(0.5,1,1)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("profiles") / "base")


def run_of(name: str, base: Path, folder: Path) -> Run:
    if name == "full":
        return make_full_run(folder, base)
    return make_peft_run(folder, base, configs()[name])


@pytest.mark.parametrize(
    ("name", "curve"),
    [("full", "line"), ("lora", "native"), ("lora", "line"), ("oft", "native"), ("hra", "native")],
)
@pytest.mark.parametrize("profile", ["level", "min"])
def test_level_and_min_equalize_the_blocks_of_a_real_run(
    name: str, curve: Any, profile: str, base: Path, tmp_path: Path
) -> None:
    """Measured strengths times their multipliers come out equal, at the value of the formula."""
    run = run_of(name, base, tmp_path / "run")
    placement = Placement(run, curve=curve)
    strengths = placement.strengths(20)
    assert len(strengths) == 2
    assert strengths[0] != strengths[1]
    by_module = placement._multipliers_at(Point(step=20, profile=profile))
    power = 1 if placement._backend.law == "linear" else 0.5
    reached = [
        strengths[block] * by_module[next(m for m in by_module if block_of(m) == block)] ** power
        for block in (0, 1)
    ]
    goal = min(strengths.values()) if profile == "min" else sum(strengths.values()) / 2
    assert reached == pytest.approx([goal, goal])


def test_min_scales_the_generators_of_a_real_rotation(base: Path, tmp_path: Path) -> None:
    """MinScale by hand: each block's oft_R times least strength over its own."""
    run = run_of("oft", base, tmp_path / "run")
    tensors = load_file(run.folder(20) / "adapter_model.safetensors")
    blocks = [
        [n for n in tensors if f".layers.{block}." in n and "oft_R" in n] for block in (0, 1)
    ]
    rms = [
        torch.cat([tensors[n].flatten() for n in names]).square().mean().sqrt() for names in blocks
    ]
    scaled_by = {n: min(rms) / rms[b] for b, names in enumerate(blocks) for n in names}
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    save_file(
        {n: t * scaled_by[n] for n, t in tensors.items()}, by_hand / "adapter_model.safetensors"
    )
    config = (run.folder(20) / "adapter_config.json").read_text()
    (by_hand / "adapter_config.json").write_text(config)
    placement = Placement(run)
    placement.place(Point(step=20, profile="min"))
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(by_hand))
    torch.testing.assert_close(probe(placement.model), probe(stock.eval()), atol=1e-6, rtol=0)


def test_a_profile_moves_whole_models_tensor_by_tensor(base: Path, tmp_path: Path) -> None:
    run = run_of("full", base, tmp_path / "run")
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.8, profile="depth(0.5,1)"))
    start = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    end = dict(AutoModelForCausalLM.from_pretrained(run.folder(20)).named_parameters())
    for name, live in placement.model.named_parameters():
        share = 0.8 if ".layers.1." in name or name == "model.norm.weight" else 0.4
        expected = start[name] + share * (end[name] - start[name])
        torch.testing.assert_close(live, expected, atol=1e-6, rtol=0)


def test_an_export_keeps_the_profile(base: Path, tmp_path: Path) -> None:
    from backtrack.exporter import export

    run = run_of("lora", base, tmp_path / "run")
    point = Point(step=20, alpha=0.7, profile="modules(1,0.25)")
    placement = Placement(run)
    placement.place(point)
    export(run, point, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(base)
    stock = probe(PeftModel.from_pretrained(loaded, str(tmp_path / "out")).eval())
    assert torch.equal(stock, probe(placement.model))
    placement.place(Point(step=20, alpha=0.7))
    assert not torch.equal(stock, probe(placement.model))


def test_a_bank_shared_by_all_layers_supports_no_profile(base: Path, tmp_path: Path) -> None:
    placement = Placement(run_of("vblora", base, tmp_path / "run"))
    with pytest.raises(PointError, match="shared"):
        placement.place(Point(step=20, profile="depth(0,1)"))


def test_both_ends_stay_exact_around_profiles(base: Path, tmp_path: Path) -> None:
    placement = Placement(run_of("hra", base, tmp_path / "run"), form="attached")
    ends = {}
    for alpha in (0.0, 1.0):
        placement.place(Point(step=20, alpha=alpha))
        ends[alpha] = probe(placement.model)
    placement.place(Point(step=20, alpha=0.5, profile="depth(0,1)"))
    placement.place(Point(step=10, alpha=0.5, profile="min"))
    for alpha, expected in ends.items():
        placement.place(Point(step=20, alpha=alpha))
        assert torch.equal(probe(placement.model), expected)


@pytest.mark.parametrize("name", ["lora", "lora-rs", "lora-patterns"])
def test_a_strength_from_low_rank_factors_is_that_of_their_delta(
    name: str, base: Path, tmp_path: Path
) -> None:
    run = run_of(name, base, tmp_path / "run")
    by_factors, by_deltas = Placement(run), Placement(run, form="merged", curve="line")
    assert by_factors.strengths(20) == pytest.approx(by_deltas.strengths(20), rel=1e-4)


def test_measuring_a_profile_leaves_the_model_at_its_point(base: Path, tmp_path: Path) -> None:
    placement = Placement(run_of("lora", base, tmp_path / "run"))
    placement.place(Point(step=10, alpha=0.3))
    before = probe(placement.model)
    placement.strengths(20)
    placement.distance(Point(step=20, alpha=0.5, profile="safe"))
    assert torch.equal(probe(placement.model), before)
