"""A snapshot is not affected by later changes of the live tensors."""

from __future__ import annotations

import pytest
import torch

from backtrack.run.bits import tensor_of
from backtrack.train.trajectory import snapshot
from backtrack.train.trajectory.snapshot import Snapshot, Snapshots


def live(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(300, 40, generator=generator).to(device),
        "half": torch.randn(1000, generator=generator).bfloat16().to(device),
        "turned": torch.randn(30, 50, generator=generator).to(device).T,
        "count": torch.arange(5, device=device),
    }


def assert_is(taken: Snapshot, expected: dict[str, torch.Tensor]) -> None:
    found = {name: tensor_of(bits) for name, bits in taken.bits().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_snapshot_equals_the_tensors_before_later_changes(
    device: str, dtype: torch.dtype | None
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensors = live(device)
    expected = {
        n: (t.to(dtype) if dtype and t.is_floating_point() else t).cpu().clone()
        for n, t in tensors.items()
    }
    taken = Snapshots(dtype).take(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert_is(taken, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("free", [0, 1 << 60], ids=["direct", "staged"])
def test_a_snapshot_is_right_whether_or_not_the_device_has_room_for_a_copy(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(snapshot, "free_bytes", lambda _device: free)
    tensors: dict[str, torch.Tensor] = {}
    for i in range(torch.cuda.device_count()):
        tensors |= {f"{name}-{i}": tensor for name, tensor in live(f"cuda:{i}").items()}
    expected = {name: tensor.cpu() for name, tensor in tensors.items()}
    taken = Snapshots().take(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert_is(taken, expected)


def test_buffers_are_reused_only_after_they_are_released() -> None:
    snapshots, tensors = Snapshots(), live("cpu")
    first = snapshots.take(tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["w"].add_(1)
    second = snapshots.take(tensors)
    assert_is(first, before)
    first.release()
    third = snapshots.take(tensors)
    assert third.tensors["w"].data_ptr() == first.tensors["w"].data_ptr()
    assert third.tensors["w"].data_ptr() != second.tensors["w"].data_ptr()
