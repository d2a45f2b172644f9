"""Whole models come back bit for bit, from few bytes, and damage is named."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backtrack.errors import CheckpointError
from backtrack.run import codec
from backtrack.run.bits import Bits, bits_of, tensor_of, write_safetensors

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int16,
    torch.uint8, torch.bool, torch.float8_e4m3fn,
]  # fmt: skip
Tensors = dict[str, torch.Tensor]


def state(seed: int, like: Tensors | None = None) -> Tensors:
    """Tensors of every type and of awkward shapes; with `like`, a small way from it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for dtype in DTYPES:
        noise = 3 * torch.randn(37, 11, generator=generator)
        if like is not None and dtype.is_floating_point:
            noise = like[str(dtype)].float() + 1e-3 * noise
        found[str(dtype)] = noise.to(dtype)
    found["scalar"] = torch.tensor(float(seed))
    found["empty"] = torch.empty(0, 4)
    # More than one chunk, and no whole number of them.
    found["long"] = torch.randn(codec.CHUNK_BYTES // 4 + 12345, generator=generator)
    found["special"] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45])
    return found


def bits(tensors: Tensors) -> dict[str, Bits]:
    return {name: bits_of(tensor) for name, tensor in tensors.items()}


def write(path: Path, tensors: Tensors, step: int, old: Tensors | None = None) -> codec.CodedFile:
    codec.encode(
        path,
        bits(tensors),
        reference=None if old is None else bits(old),
        reference_step=None if old is None else step - 1,
    )
    return codec.read_table(path)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


@pytest.fixture(scope="module")
def states() -> list[Tensors]:
    first = state(0)
    second = state(1, first)
    return [first, second, state(2, second)]


@pytest.fixture(scope="module")
def chain(
    states: list[Tensors], tmp_path_factory: pytest.TempPathFactory
) -> list[codec.CodedFile]:
    folder = tmp_path_factory.mktemp("chain")
    olds = [None, *states]
    return [
        write(folder / f"{step}.safetensors", tensors, step, old)
        for step, (tensors, old) in enumerate(zip(states, olds, strict=False), 1)
    ]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_type_and_shape_comes_back_bit_for_bit(
    states: list[Tensors], chain: list[codec.CodedFile], length: int
) -> None:
    found = codec.decode(chain[:length])
    expected = states[length - 1]
    assert found.keys() == expected.keys()
    strays = [n for n in expected if not same_bits(tensor_of(found[n]), expected[n])]
    assert strays == []


def test_the_file_is_one_that_safetensors_reads_and_its_metadata_say_how_it_was_made(
    chain: list[codec.CodedFile],
) -> None:
    with safe_open(chain[1].path, framework="pt") as file:
        table = json.loads(file.metadata()["backtrack"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.uint8}  # noqa: SIM118
    assert table["codec"] == codec.CODEC
    assert table["reference"] == 1
    assert table["tensors"]["torch.bfloat16"]["dtype"] == "BF16"


def test_equal_tensors_give_equal_files(states: list[Tensors], tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, states[1], 2, states[0])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_small_steps_take_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1 << 18, generator=generator)
    tensors = {"w": first.bfloat16()}
    moved = {"w": (first + 1e-3 * torch.randn(1 << 18, generator=generator)).bfloat16()}
    write(tmp_path / "delta", moved, 2, tensors)
    assert (tmp_path / "delta").stat().st_size < 0.35 * 2 * (1 << 18)


def test_a_tensor_the_reference_has_not_is_coded_by_itself(tmp_path: Path) -> None:
    old = {"w": torch.ones(8), "gone": torch.ones(2)}
    new = {"w": torch.ones(4, 2), "fresh": torch.arange(3)}
    files = [write(tmp_path / "1", old, 1), write(tmp_path / "2", new, 2, old)]
    found = codec.decode(files)
    assert all(same_bits(tensor_of(found[n]), new[n]) for n in new)
    assert found.keys() == new.keys()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_flipped_bit_is_named_wherever_it_is(
    chain: list[codec.CodedFile], tmp_path: Path, share: float
) -> None:
    octets = bytearray(chain[0].path.read_bytes())
    octets[int(share * len(octets))] ^= 4
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(octets)
    with pytest.raises(CheckpointError, match="flipped"):
        codec.decode([codec.read_table(path)])


@pytest.mark.parametrize("length", [0, 5, 4000, -1])
def test_a_file_cut_short_is_named(
    chain: list[codec.CodedFile], tmp_path: Path, length: int
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(chain[0].path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is truncated"):
        codec.read_table(path)


def test_a_wrong_reference_is_noticed(states: list[Tensors], tmp_path: Path) -> None:
    key = write(tmp_path / "key", states[2], 1)
    delta = write(tmp_path / "delta", states[1], 2, states[0])
    with pytest.raises(CheckpointError, match="does not decode to what was saved"):
        codec.decode([key, delta])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40]}, {"shape": [-4]}, {"frames": [10**12]}, {"frames": []},
        {"dtype": "F128"}, {"crc32": [True]}, {"shape": "8"},
    ],
)  # fmt: skip
def test_a_hostile_table_is_refused_before_memory_is_taken(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "hostile.safetensors"
    table = write(path, {"w": torch.ones(8)}, 1).tensors["w"]
    row = {
        "dtype": table.dtype, "shape": [8], "delta": False, "frames": list(table.frames),
        "crc32": list(table.crc32),
    }  # fmt: skip
    about = {"codec": codec.CODEC, "reference": None, "tensors": {"w": {**row, **change}}}
    octets = bits_of(torch.zeros(sum(table.frames), dtype=torch.uint8))
    write_safetensors(path, {"w": octets})
    with safe_open(path, framework="pt") as file:
        payload = {"w": file.get_tensor("w")}
    save_file(payload, path, metadata={"backtrack": json.dumps(about)})
    with pytest.raises(CheckpointError, match="hostile"):
        codec.decode([codec.read_table(path)])


def test_a_frame_that_declares_more_than_its_chunk_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    row = {"dtype": "U8", "shape": [8], "delta": False, "frames": [len(frame)], "crc32": [0]}
    about = {"codec": codec.CODEC, "reference": None, "tensors": {"w": row}}
    payload = {"w": torch.frombuffer(bytearray(frame), dtype=torch.uint8)}
    save_file(payload, path, metadata={"backtrack": json.dumps(about)})
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="wrong size"):
        codec.decode([codec.read_table(path)])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 24


def test_a_plain_file_is_what_the_library_writes(states: list[Tensors], tmp_path: Path) -> None:
    write_safetensors(tmp_path / "plain.safetensors", bits(states[0]))
    found = load_file(tmp_path / "plain.safetensors")
    assert found.keys() == states[0].keys()
    assert all(same_bits(found[name], states[0][name]) for name in found)
