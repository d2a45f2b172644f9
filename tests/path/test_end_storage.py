"""Where the ends of a merged path are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backtrack.path.backends import end_storage
from backtrack.path.backends.end_storage import choose_storage, store_end
from backtrack.path.backends.pinned_memory import empty_pinned
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import (
    make_base,
    make_full_run,
    make_peft_run,
)
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("ends") / "base", tied=request.param)


@pytest.mark.parametrize("keep", ["device", "pinned", "mapped"])
@pytest.mark.parametrize("name", ["full", "lora", "oft", "lora-embedding"])
def test_points_are_the_same_in_every_end_storage(
    name: str, keep: Any, base: Path, tmp_path: Path
) -> None:
    is_full = name == "full"
    run = (
        make_full_run(tmp_path / "run", base)
        if is_full
        else make_peft_run(tmp_path / "run", base, configs()[name])
    )
    reference = Placement(run, form="merged")
    stored = Placement(run, form="merged", keep=keep)
    assert stored.keep == keep
    for point in (Point(step=20, alpha=0.4), Point(step=10, alpha=1.0), Point.base()):
        reference.place(point)
        stored.place(point)
        assert torch.equal(probe(stored.model), probe(reference.model))


@pytest.mark.parametrize(
    ("available", "expected"), [(10**12, "device"), (1_050, "mapped"), (1_200, "device")]
)
def test_the_fastest_storage_that_fits_is_chosen(
    available: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_storage, "free_bytes", lambda _device: available)
    live = {"a": torch.empty(300, dtype=torch.uint8), "b": torch.empty(200, dtype=torch.uint8)}
    assert choose_storage(live, 2) == expected


def test_pinned_memory_takes_its_bytes_and_lives_as_long_as_a_view_of_it() -> None:
    pinned = empty_pinned(torch.Size([33, 1000]), torch.bfloat16)
    assert pinned.untyped_storage().nbytes() == 66_000
    row = pinned.fill_(3.0)[7]
    del pinned
    assert torch.equal(row, torch.full_like(row, 3.0))
    assert empty_pinned(torch.Size([0, 4]), torch.float32).shape == (0, 4)


def test_a_mapped_end_is_read_from_disk_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tensor = torch.arange(4_000_000, dtype=torch.float32)
    stored = store_end({"a": tensor}, "mapped", {})["a"]
    assert not list(tmp_path.iterdir())
    mapped = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}" in mapped
    assert torch.equal(stored, tensor)
