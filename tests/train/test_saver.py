"""What users of `CheckpointSaver` rely on in loops of their own: bare, by accelerate, in DDP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import distributed
from transformers import AutoModelForCausalLM

from backtrack import CheckpointSaver
from backtrack.errors import RunError, UsageError
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from tests.models import make_tokenizer
from tests.train.test_callback import model_in_memory

Weights = dict[str, torch.Tensor]


@pytest.fixture
def accelerated() -> Iterator[None]:
    """Accelerate's state of the process: none of an earlier training's, and gone afterwards."""

    def reset() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()
    yield
    reset()


def lora(model: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def ids(step: int) -> torch.Tensor:
    return torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(step))


def train(
    model: Any, saver: CheckpointSaver, steps: range, plain: Any = None
) -> dict[int, Weights]:
    """Take steps; the trained weights after each of them, as stock libraries name them."""
    plain = plain if plain is not None else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    after = {}
    for step in steps:
        loss = model(input_ids=ids(step), labels=ids(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        saver.step(step, loss)
        state = (
            get_peft_model_state_dict(plain)
            if isinstance(plain, PeftModel)
            else plain.state_dict()
        )
        after[step] = {name: tensor.detach().clone() for name, tensor in state.items()}
    return after


def require_saved(folder: Path, after: dict[int, Weights], *steps: int) -> Run:
    """A run has these steps and no others, each with the weights that there were."""
    run = Run.open(folder)
    assert run.steps == steps
    for step in steps:
        for name, tensor in read_checkpoint(run, step).items():
            assert torch.equal(tensor, after[step][name]), (step, name)
    return run


@pytest.mark.parametrize("is_adapter", [True, False])
def test_a_bare_loop_leaves_a_run_of_the_steps_that_were_due_and_the_last(
    tmp_path: Path, is_adapter: bool
) -> None:
    base = model_in_memory()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = lora(base) if is_adapter else base
    with CheckpointSaver.begin(
        tmp_path / "run", model, tokenizer=make_tokenizer(), every_steps=2
    ) as saver:
        after = train(model, saver, range(1, 6))
    run = require_saved(tmp_path / "run", after, 2, 4, 5)
    assert run.manifest.method.kind == ("lora" if is_adapter else "full")
    written = AutoModelForCausalLM.from_pretrained(run.path / "base").state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in before.items())
    losses = [entry.train_loss for entry in run.entries()]
    assert all(loss is not None and 1 < loss < 6 for loss in losses)


def test_a_loop_prepared_by_accelerate_saves_what_training_computes_in(
    tmp_path: Path, accelerated: None
) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain = model_in_memory()
    model = accelerator.prepare(plain)
    with CheckpointSaver.begin(tmp_path / "run", model, every_steps=3) as saver:
        after = train(model, saver, range(1, 4), plain)
    run = Run.open(tmp_path / "run")
    assert run.steps == (3,)
    for name, tensor in read_checkpoint(run, 3).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, after[3][name].bfloat16()), name


def test_a_model_wrapped_by_ddp_is_saved_under_its_own_names(tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        plain = lora(model_in_memory())
        model = torch.nn.parallel.DistributedDataParallel(plain)
        with CheckpointSaver.begin(tmp_path / "run", model, every_steps=2) as saver:
            after = train(model, saver, range(1, 3), plain)
    finally:
        distributed.destroy_process_group()
    require_saved(tmp_path / "run", after, 2)


def test_a_resumed_loop_continues_its_run_and_replaces_what_it_takes_again(tmp_path: Path) -> None:
    model = lora(model_in_memory())
    with CheckpointSaver.begin(tmp_path / "run", model, every_steps=2) as saver:
        first = train(model, saver, range(1, 5))
    with pytest.raises(RunError, match="continue it with `begun_at=STEP`"):
        CheckpointSaver.begin(tmp_path / "run", model)
    with CheckpointSaver.begin(tmp_path / "run", model, every_steps=2, begun_at=3) as saver:
        second = train(model, saver, range(4, 8))
    require_saved(tmp_path / "run", first | second, 2, 4, 6, 7)
    with pytest.raises(RunError, match="was trained by `lora`, but the model that resumes has"):
        CheckpointSaver.begin(tmp_path / "run", model_in_memory(), begun_at=7)


def test_an_error_in_the_loop_keeps_what_was_due_and_no_half_updated_weights(
    tmp_path: Path,
) -> None:
    model = lora(model_in_memory())
    saver = CheckpointSaver.begin(tmp_path / "run", model, every_steps=2)
    after = train(model, saver, range(1, 4))
    with pytest.raises(ZeroDivisionError), saver:
        raise ZeroDivisionError
    require_saved(tmp_path / "run", after, 2)


@pytest.mark.parametrize(
    ("given", "steps"),
    [({"log_checkpoints": 3, "last_step": 9}, (1, 3, 9)), ({"every_distance": 1e9}, (1, 9)),
     ({"every_steps": 4, "last_step": 6}, (4, 6))],
)  # fmt: skip
def test_cadences_are_those_of_a_recipe(tmp_path: Path, given, steps) -> None:
    model = lora(model_in_memory())
    with CheckpointSaver.begin(tmp_path / "run", model, **given) as saver:
        train(model, saver, range(1, 10))
    assert Run.open(tmp_path / "run").steps == steps


def test_wrong_use_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = lora(model_in_memory())
    with pytest.raises(UsageError, match="give `last_step` too"):
        CheckpointSaver.begin(tmp_path / "a", model, log_checkpoints=3)
    with pytest.raises(UsageError, match=r"CheckpointSaver: every_step: .*, got 3"):
        CheckpointSaver.begin(tmp_path / "b", model, every_step=3)
    with pytest.raises(UsageError, match="needs a transformers or PEFT model, not Linear"):
        CheckpointSaver.begin(tmp_path / "c", torch.nn.Linear(2, 2))
    with CheckpointSaver.begin(tmp_path / "d", model) as saver:
        saver.step(5)
        with pytest.raises(UsageError, match="step 2 follows step 5: steps ascend"):
            saver.step(2)
