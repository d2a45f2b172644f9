"""Where other trainers put checkpoints, and what they leave beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from backtrack.errors import RunError, UsageError
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.run.adopt import adopt
from backtrack.run.directory import Run
from tests.models import jitter, make_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("folders") / "base")


def adapted(base: Path, name: str = "default") -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config, adapter_name=name)


def save_steps(source: Path, model: Any) -> Path:
    for step in (10, 20):
        jitter(model, 0.05, seed=step)
        model.save_pretrained(str(source / f"checkpoint-{step}"))
        state = {"global_step": step, "max_steps": 25, "save_steps": 10}
        (source / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return source


def adopted(source: Path, base: Path, said: list[str] | None = None) -> Run:
    said = [] if said is None else said
    return adopt(source, base=str(base), runs=source.parent / "runs", on_skip=said.append)


def test_later_weights_beside_the_checkpoints_are_the_last_step(
    base: Path, tmp_path: Path
) -> None:
    model = adapted(base)
    source = save_steps(tmp_path / "out", model)
    jitter(model, 0.2, seed=25)
    model.save_pretrained(str(source))
    said: list[str] = []
    run = adopted(source, base, said)
    assert (run.steps, said) == ((10, 20, 25), [])
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    plain = AutoModelForCausalLM.from_pretrained(base)
    stock = PeftModel.from_pretrained(plain, str(source)).eval()
    assert torch.equal(probe(placement.model), probe(stock))


def test_a_saved_state_says_at_which_step_the_last_weights_are(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    source = save_steps(tmp_path / "out", model)
    jitter(model, 0.2, seed=25)
    model.save_pretrained(str(source))
    (source / "trainer_state.json").write_text('{"global_step": 23}')
    assert adopted(source, base).steps == (10, 20, 23)


@pytest.mark.parametrize("step", [10, 20])
def test_weights_beside_the_checkpoints_that_are_one_of_them_are_no_step(
    base: Path, tmp_path: Path, step: int
) -> None:
    source = save_steps(tmp_path / "out", adapted(base))
    for path in (source / f"checkpoint-{step}").glob("adapter_*"):
        shutil.copy(path, source)
    said: list[str] = []
    assert (adopted(source, base, said).steps, said) == ((10, 20), [])


@pytest.mark.parametrize(
    ("unusual", "words"),
    [("step", "not known at which step"), ("kind", "whole models"), ("shape", "not those of")],
)
def test_weights_beside_the_checkpoints_that_are_left_out_are_named(
    base: Path, tmp_path: Path, unusual: str, words: str
) -> None:
    model = adapted(base)
    source = save_steps(tmp_path / "out", model)
    jitter(model, 0.2, seed=25)
    if unusual == "kind":
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(source)
    else:
        model.save_pretrained(str(source), save_embedding_layers=unusual == "shape")
    (source / "checkpoint-20" / "trainer_state.json").unlink()
    said: list[str] = []
    assert adopted(source, base, said).steps == (10, 20)
    assert len(said) == 1
    assert words in said[0]


def test_adapters_in_folders_of_their_names_are_found(base: Path, tmp_path: Path) -> None:
    model = adapted(base, "policy")
    source = save_steps(tmp_path / "out", model)
    run = adopted(source, base)
    assert run.steps == (10, 20)
    assert run.folder(20) == source / "checkpoint-20" / "policy"
    assert adopt(source / "checkpoint-20", base=str(base), runs=tmp_path / "one").steps == (1,)
    shutil.copytree(source / "checkpoint-20" / "policy", source / "checkpoint-20" / "reference")
    said: list[str] = []
    shutil.rmtree(tmp_path / "runs")
    assert adopted(source, base, said).steps == (10,)
    assert "policy, reference" in said[0]


def test_trainings_one_level_down_are_found_if_there_is_one(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "output"
    save_steps(source / "v0-20250101-120000", adapted(base))
    assert adopted(source, base).steps == (10, 20)
    save_steps(source / "v1-20250101-130000", adapted(base))
    with pytest.raises(RunError, match="v0-20250101-120000, v1-20250101-130000"):
        adopted(source, base)


def test_a_base_that_is_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    source = save_steps(tmp_path / "out", adapted(base))
    with pytest.raises(UsageError, match="itself an adapter"):
        adopt(source, base=str(source / "checkpoint-10"), runs=tmp_path / "runs")


def test_folders_of_one_name_are_told_the_command_that_names_a_run(
    base: Path, tmp_path: Path
) -> None:
    for parent in ("a", "b"):
        save_steps(tmp_path / parent / "out", adapted(base))
    adopt(tmp_path / "a" / "out", runs=tmp_path / "runs")
    command = f"backtrack adopt {tmp_path / 'b' / 'out'} --base .* --name"
    with pytest.raises(RunError, match=command):
        adopt(tmp_path / "b" / "out", runs=tmp_path / "runs")
