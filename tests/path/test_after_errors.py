"""After an error a placement is at the point it was at, or says that it is at none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from backtrack.errors import CheckpointError, PlacementError, PointError
from backtrack.path.adapters.handles import Handle
from backtrack.path.backends import line_mixture, merged
from backtrack.path.curves import line
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_full_run, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

BACKENDS = ("attached", "merged full", "merged adapter, line", "merged adapter, curve")
STEPS = tuple(range(10, 70, 10))
"""More than an attached adapter holds in memory."""
HERE = Point(step=60, alpha=0.3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def make(backend: str, base: Path, folder: Path) -> tuple[Run, Placement]:
    if backend == "merged full":
        run = make_full_run(folder, base, STEPS)
        return run, Placement(run)
    if backend == "merged adapter, curve":
        run = make_peft_run(folder, base, configs()["oft"], STEPS)
        return run, Placement(run, form="merged", curve="native")
    run = make_peft_run(folder, base, lora(), STEPS)
    if backend == "attached":
        return run, Placement(run, form="attached")
    return run, Placement(run, form="merged", curve="line")


def damage(run: Run, step: int) -> None:
    path = next(run.folder(step).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def stock(run: Run, step: int, *, is_merged: bool) -> torch.Tensor:
    if run.manifest.method.kind == "full":
        return probe(AutoModelForCausalLM.from_pretrained(run.folder(step)))
    base = AutoModelForCausalLM.from_pretrained(run.base.model)
    model: Any = PeftModel.from_pretrained(base, str(run.folder(step))).eval()
    return probe(model.merge_and_unload() if is_merged else model)


def require_exact_ends(placement: Placement, run: Run, step: int) -> None:
    """alpha 0 is the base's bits, alpha 1 the checkpoint's (within rounding if PEFT merged it)."""
    placement.place(Point.base())
    bare = AutoModelForCausalLM.from_pretrained(run.base.model)
    assert torch.equal(probe(placement.model), probe(bare))
    placement.place(Point(step=step))
    is_merged = placement.form == "merged" and run.manifest.method.kind != "full"
    expected = stock(run, step, is_merged=is_merged)
    if is_merged:
        torch.testing.assert_close(probe(placement.model), expected, atol=1e-5, rtol=1e-4)
    else:
        assert torch.equal(probe(placement.model), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_step_leaves_the_model_where_it_was(
    backend: str, base: Path, tmp_path: Path
) -> None:
    run, placement = make(backend, base, tmp_path / "run")
    placement.place(HERE)
    before = probe(placement.model)
    damage(run, 10)
    for call in (
        lambda: placement.place(Point(step=10)),
        lambda: placement.place(Point(step=10, alpha=0.5, profile="safe")),
        lambda: placement.distance(Point(step=10)),
        lambda: placement.strengths(10),
    ):
        with pytest.raises(CheckpointError):
            call()
        assert placement.point == HERE
        assert torch.equal(probe(placement.model), before)
    placement.place(Point.base())
    placement.place(HERE)
    assert torch.equal(probe(placement.model), before)
    require_exact_ends(placement, run, 60)
    require_exact_ends(placement, run, 20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_base_is_exact_right_after_a_damaged_step(
    backend: str, base: Path, tmp_path: Path
) -> None:
    run, placement = make(backend, base, tmp_path / "run")
    placement.place(HERE)
    damage(run, 10)
    with pytest.raises(CheckpointError):
        placement.place(Point(step=10))
    require_exact_ends(placement, run, 60)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distance_and_strengths_of_another_step_do_not_move_the_model(
    backend: str, base: Path, tmp_path: Path
) -> None:
    _, placement = make(backend, base, tmp_path / "run")
    placement.place(HERE)
    before = probe(placement.model)
    for step in STEPS:
        placement.distance(Point(step=step))
        assert torch.equal(probe(placement.model), before)
        placement.strengths(step)
        assert torch.equal(probe(placement.model), before)
    assert placement.point == HERE


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_write_leaves_the_model_at_no_point_until_it_is_placed_again(
    backend: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, placement = make(backend, base, tmp_path / "run")
    placement.place(HERE)
    calls = iter(range(100))

    def interrupt() -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    original = Handle.write

    def write_handle(self: Handle, trained: torch.Tensor, alpha: float) -> None:
        interrupt()
        original(self, trained, alpha)

    def write_line(*ends: Any, out: torch.Tensor) -> None:
        interrupt()
        line(*ends, out=out)

    with monkeypatch.context() as patch:
        patch.setattr(Handle, "write", write_handle)
        patch.setattr(line_mixture, "line", write_line)
        patch.setattr(merged, "line", write_line)
        with pytest.raises(KeyboardInterrupt):
            placement.place(Point(step=60, alpha=0.7))
    with pytest.raises(PlacementError, match="interrupted"):
        _ = placement.point
    with pytest.raises(PlacementError, match="interrupted"):
        placement.save(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    require_exact_ends(placement, run, 60)
    assert placement.point == Point(step=60)


def test_a_strength_that_the_method_refuses_leaves_the_model_where_it_was(
    base: Path, tmp_path: Path
) -> None:
    config = configs()["oft"]
    config.coft = True
    placement = Placement(make_peft_run(tmp_path / "run", base, config))
    placement.place(Point(step=20, alpha=0.3))
    before = probe(placement.model)
    with pytest.raises(PointError, match="clips"):
        placement.place(Point(step=10, alpha=1.5))
    assert torch.equal(probe(placement.model), before)
    assert placement.point == Point(step=20, alpha=0.3)


def test_an_error_in_a_batch_of_several_strengths_leaves_the_model_where_it_was(
    base: Path, tmp_path: Path
) -> None:
    _, placement = make("attached", base, tmp_path / "run")
    placement.place(HERE)
    before = probe(placement.model)
    rows = placement.row_strengths
    assert rows is not None
    with pytest.raises(RuntimeError, match="stop"), rows.by_row([HERE, Point(step=60)]):
        raise RuntimeError("stop")
    assert torch.equal(probe(placement.model), before)
