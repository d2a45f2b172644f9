"""Files of other trainers, written by their own libraries, become runs; nothing in them runs."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backtrack.errors import CheckpointError, RunError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from backtrack.run.bits import tensor_of
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from backtrack.run.foreign.formats import foreign_shapes, read_foreign
from backtrack.run.foreign.inert_pickle import Archive, Call, Name, count, counts, parse, text
from tests.models import jitter, make_base, make_tokenizer

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore")


def unpacked(name: str, factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp(name)
    with zipfile.ZipFile(HERE / "foreign" / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What DeepSpeed 0.19.8 wrote on two processes (see make_foreign.py)."""
    return unpacked("deepspeed", tmp_path_factory)


@pytest.fixture(scope="module")
def torchtune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torchtune 0.6.1 wrote (see make_foreign.py)."""
    return unpacked("torchtune", tmp_path_factory)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base", dtype="bfloat16")


@pytest.fixture(scope="module")
def sharded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch's FSDP2 and distributed checkpoint write on two processes, now."""
    out = tmp_path_factory.mktemp("sharded")
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            str(HERE / "write_dcp.py"), str(base), str(out),
        ],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def assert_holds(run: Run, step: int, expected: dict[str, torch.Tensor]) -> None:
    found = read_checkpoint(run, step)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("kind", "steps"), [("fsdp", (5, 10)), ("verl", (20,))])
def test_fsdp_checkpoints_are_taken_over_by_reference(
    sharded: Path, base: Path, tmp_path: Path, kind: str, steps: tuple[int, ...]
) -> None:
    before = sorted((sharded / kind).rglob("*"))
    run = adopt(sharded / kind, base=str(base), runs=tmp_path)
    assert run.steps == steps
    assert run.manifest.method.kind == "full"
    assert sorted((sharded / kind).rglob("*")) == before
    assert not [*run.path.rglob("*.safetensors"), *run.path.rglob("*.pt")]
    assert_holds(run, steps[-1], load_file(sharded / "expected" / "model.safetensors"))
    placement = Placement(run, device="cpu")
    placement.place(Point(step=steps[-1], alpha=0.5))


@pytest.mark.parametrize(
    ("kind", "beside"), [("fsdp", "checkpoint-10"), ("verl", "global_step_20/actor/huggingface")]
)
def test_a_template_and_a_tokenizer_beside_shards_are_the_runs(
    sharded: Path, base: Path, tmp_path: Path, kind: str, beside: str
) -> None:
    shutil.copytree(sharded / kind, tmp_path / "out")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.eos_token = "?"
    tokenizer.save_pretrained(tmp_path / "out" / beside)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    assert placement.tokenizer.chat_template == tokenizer.chat_template
    assert tokenizer.eos_token_id in placement.model.generation_config.eos_token_id


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_checkpoints_are_put_together_in_the_type_that_was_trained(
    deepspeed: Path, tmp_path: Path, stage: int
) -> None:
    source = deepspeed / f"stage{stage}"
    run = adopt(source, base=str(deepspeed / "base"), runs=tmp_path)
    assert run.steps == (4,)
    # DeepSpeed's own zero_to_fp32 gave these; bf16 is what the model computed with.
    fp32 = load_file(source / "expected.safetensors")
    assert_holds(run, 4, {name: tensor.bfloat16() for name, tensor in fp32.items()})
    Placement(run, device="cpu").place(Point(step=4, alpha=0.5))


def test_buffers_of_zero_3_are_read(deepspeed: Path, tmp_path: Path) -> None:
    source = shutil.copytree(deepspeed / "stage3", tmp_path / "stage3") / "global_step4"
    expected = torch.tensor([1.0, -2.0])
    for path in source.glob("*_model_states.pt"):
        content = torch.load(path, weights_only=False)  # noqa: TID251  # kept here, our own
        content["module"]["router.bias"] = expected
        content["buffer_names"] = ["router.bias"]
        torch.save(content, path)
    base = {*load_file(deepspeed / "base" / "model.safetensors"), "router.bias"}
    assert foreign_shapes("zero", source, base)["router.bias"] == (2,)
    assert torch.equal(tensor_of(read_foreign("zero", source, base)["router.bias"]), expected)


def test_a_missing_share_of_a_process_is_named(deepspeed: Path, tmp_path: Path) -> None:
    source = tmp_path / "stage3"
    shutil.copytree(deepspeed / "stage3", source)
    (gone,) = source.rglob("*rank_1_*optim_states.pt")
    gone.unlink()
    run = adopt(source, base=str(deepspeed / "base"), runs=tmp_path / "runs")
    with pytest.raises(CheckpointError, match="partitions of 1 of 2 processes"):
        read_checkpoint(run, 4)


def test_torchtune_epochs_are_steps_from_one(torchtune: Path, tmp_path: Path) -> None:
    run = adopt(torchtune / "full", base=str(torchtune / "base"), runs=tmp_path)
    assert run.steps == (1, 2)
    start = load_file(torchtune / "base" / "model.safetensors")
    assert_holds(run, 2, {name: tensor * 2.0625 for name, tensor in start.items()})
    Placement(run, device="cpu").place(Point(step=1, alpha=0.5))


def test_a_torchtune_adapter_is_taken_and_the_merged_model_beside_it_is_not(
    torchtune: Path, tmp_path: Path
) -> None:
    run = adopt(torchtune / "lora", base=str(torchtune / "base"), runs=tmp_path)
    assert (run.steps, run.manifest.method.kind) == ((1, 2), "lora")
    assert all("lora_" in name for name in read_checkpoint(run, 2))
    plain = AutoModelForCausalLM.from_pretrained(torchtune / "base")
    PeftModel.from_pretrained(plain, run.folder(2))
    Placement(run, device="cpu").place(Point(step=2, alpha=0.5))


def test_verl_adapters_are_plain_peft_folders(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    jitter(model, 0.1, seed=0)
    actor = tmp_path / "out" / "global_step_3" / "actor"
    model.save_pretrained(str(actor / "lora_adapter"))
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"never read")
    run = adopt(tmp_path / "out", runs=tmp_path / "runs")
    assert (run.steps, run.manifest.method.kind) == ((3,), "lora")


def test_the_base_that_verls_merger_writes_around_an_adapter_is_not_the_checkpoint(
    base: Path, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    merged = tmp_path / "out" / "global_step_3"
    model.save_pretrained(merged)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    jitter(adapted, 0.1, seed=0)
    adapted.save_pretrained(str(merged / "lora_adapter"))
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    assert (run.folder(3), run.manifest.method.kind) == (merged / "lora_adapter", "lora")


def flip_the_middle(path: Path) -> None:
    octets = bytearray(path.read_bytes())
    octets[len(octets) // 2] ^= 16
    path.write_bytes(octets)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip_the_middle, cut_in_half, Path.unlink])
def test_a_checkpoint_damaged_after_it_was_adopted_is_named(
    sharded: Path, base: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    shutil.copytree(sharded / "fsdp", tmp_path / "out")
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    damaged = max((tmp_path / "out" / "checkpoint-10").rglob("__1_0.distcp"))
    harm(damaged)
    with pytest.raises(CheckpointError, match="step 10"):
        read_checkpoint(run, 10)
    read_checkpoint(run, 5)


def test_a_checkpoint_cut_short_before_is_left_out(
    sharded: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(sharded / "fsdp", tmp_path / "out")
    cut_in_half(tmp_path / "out" / "checkpoint-10" / "pytorch_model_fsdp_0" / ".metadata")
    skipped: list[str] = []
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs", on_skip=skipped.append)
    assert run.steps == (5,)
    assert len(skipped) == 1


def test_another_base_is_refused(sharded: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", width=64)
    with pytest.raises(RunError, match="shape"):
        adopt(sharded / "fsdp", base=str(other), runs=tmp_path / "runs")


class Touch:
    """A pickle of it runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_program_is_read_as_text(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "ran"
    found = parse(pickle.dumps({"a": [Touch(trap), (1, 2)]}, protocol), "here")
    call, pair = found["a"]
    assert isinstance(call, Call)
    assert call.of in {Name("posix.system"), Name("nt.system")}
    assert pair == (1, 2)
    assert not trap.exists()


def test_a_hostile_weight_is_refused_and_does_not_run(
    sharded: Path, base: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "ran"
    actor = tmp_path / "out" / "global_step_20" / "actor"
    shutil.copytree(sharded / "verl" / "global_step_20" / "actor", actor)
    state = dict.fromkeys(load_file(base / "model.safetensors"), Touch(trap))
    torch.save(state, actor / "model_world_size_2_rank_0.pt")
    with pytest.raises(RunError, match=r"posix\.system is in place of a tensor"):
        adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    assert not trap.exists()


NESTED = b"I1\n" + b"\x85" * 10**6
"""A tuple in a tuple in a tuple, and so on: hashing it overflows the interpreter's stack."""
DOUBLED = b"I1\n" + b"2\x86" * 45
"""A tuple of the same tuple twice, 45 times over: hashing or printing it takes days."""


@pytest.mark.parametrize("value", [NESTED, DOUBLED])
def test_a_value_without_end_is_neither_hashed_nor_printed(value: bytes) -> None:
    as_key = parse(b"\x80\x02}" + value + b"I2\ns.", "here")
    assert list(as_key.values()) == [2]
    in_set_of_keys = parse(b"\x80\x02(" + value + b"I2\nd.", "here")
    assert list(in_set_of_keys.values()) == [2]
    with pytest.raises(CheckpointError, match="tuple in place of text"):
        parse(b"\x80\x04" + value + b"\x8c\x01a\x93.", "here")
    found = parse(b"\x80\x02" + value + b".", "here")
    for read in (count, counts, text):
        with pytest.raises(ValueError, match="tuple in place of"):
            read(found)


def test_a_tensor_of_more_values_than_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1 << 40), tmp_path / "x.pt")
    archive = Archive(tmp_path / "x.pt", "x.pt")
    with pytest.raises(CheckpointError, match="past its bytes"):
        archive.tensor(archive.content)


def test_a_packed_archive_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="is compressed, which torch never does"):
        Archive(tmp_path / "bomb.pt", "bomb.pt")


def test_a_pickled_model_is_refused_with_the_way_to_convert_it(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoint-5"
    folder.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"pytorch_model\.bin.*save_pretrained"):
        adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")


@pytest.mark.parametrize("shared", ["view", "transposed", "bf16", "parameter", "empty", "scalar"])
def test_every_shape_torch_saves_comes_back(tmp_path: Path, shared: str) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensor = {
        "view": whole[1:3, 2:], "transposed": whole.T, "bf16": whole.bfloat16(),
        "parameter": torch.nn.Parameter(whole), "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
    }[shared]  # fmt: skip
    from backtrack.run.bits import tensor_of

    torch.save({"x": tensor}, tmp_path / "x.pt")
    archive = Archive(tmp_path / "x.pt", "x.pt")
    assert torch.equal(tensor_of(archive.tensor(archive.content["x"])), tensor)
