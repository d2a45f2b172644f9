"""What adoption finds is printed by `adopt`, kept in the run and shown with its choices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from backtrack.cli import app
from backtrack.errors import UsageError
from backtrack.run.adopt import adopt
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("notes") / "base", dtype="bfloat16")


def as_model(state: dict[str, torch.Tensor], out: Path, base: Path) -> None:
    folder = out / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def as_dcp(state: dict[str, torch.Tensor], out: Path, _base: Path) -> None:
    folder = out / "checkpoint-10" / "pytorch_model_fsdp_0"
    save({"model": state}, checkpoint_id=folder, no_dist=True)


def as_verl(state: dict[str, torch.Tensor], out: Path, _base: Path) -> None:
    folder = out / "global_step_10" / "actor"
    folder.mkdir(parents=True)
    torch.save(state, folder / "model_world_size_1_rank_0.pt")


def as_zero(state: dict[str, torch.Tensor], out: Path, _base: Path) -> None:
    folder = out / "global_step10"
    folder.mkdir(parents=True)
    content = {
        "module": state, "buffer_names": [], "mp_world_size": 1, "dp_world_size": 1,
        "param_shapes": [{name: tensor.shape for name, tensor in state.items()}],
        "ds_config": {"zero_optimization": {"stage": 2}},
    }  # fmt: skip
    torch.save(content, folder / "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("write", [as_model, as_dcp, as_verl, as_zero])
def test_it_is_said_that_fp32_is_rounded_over_a_bf16_base(
    write: Callable[[dict[str, torch.Tensor], Path, Path], None], base: Path, tmp_path: Path
) -> None:
    state = {n: t.float() for n, t in load_file(base / "model.safetensors").items()}
    write(state, tmp_path / "out", base)
    said: list[str] = []
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs", on_note=said.append)
    (note,) = said
    assert "are stored in float32 and their base in bfloat16" in note
    assert Run.open(run.path).manifest.notes == (note,)
    wide = adopt(
        tmp_path / "out", base=str(base), runs=tmp_path / "runs", name="wide", dtype="float32"
    )
    assert not wide.manifest.notes


def test_it_is_said_that_a_value_head_is_left_out(base: Path, tmp_path: Path) -> None:
    state = load_file(base / "model.safetensors")
    as_model({**state, "v_head.summary.weight": torch.ones(1, 32)}, tmp_path / "out", base)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    (note,) = run.manifest.notes
    assert "have a value head (v_head.summary.weight)" in note


def test_a_value_head_in_a_file_beside_an_adapter_is_named(base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    jitter(adapted, 0.05, seed=1)
    adapted.save_pretrained(str(tmp_path / "out"))
    save_file({"v_head.summary.weight": torch.ones(1)}, tmp_path / "out/value_head.safetensors")
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    assert "have a value head (value_head.safetensors)" in run.manifest.notes[0]


def test_other_ends_of_answers_are_printed_and_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_model(load_file(base / "model.safetensors"), tmp_path / "out", base)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "?"
    tokenizer.save_pretrained(tmp_path / "out" / "checkpoint-10")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["adopt", "out", "--base", str(base)])
    assert done.exit_code == 0, done.output
    expected = "An answer ends at </s>, and also at ?, which ends one by the tokenizer"
    assert expected in " ".join(done.output.split())
    assert Run.open("runs/out").manifest.notes[0].startswith(expected)


def test_a_name_that_is_a_path_is_refused(base: Path, tmp_path: Path) -> None:
    as_model(load_file(base / "model.safetensors"), tmp_path / "out", base)
    for name in ("../x", "a/b", "..", ""):
        with pytest.raises(UsageError, match="is a path, but a run is a folder of"):
            adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs", name=name)
    assert not (tmp_path / "runs").exists()


def test_nothing_is_said_of_an_ordinary_checkpoint(base: Path, tmp_path: Path) -> None:
    as_model(load_file(base / "model.safetensors"), tmp_path / "out", base)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    assert run.manifest.notes == ()
