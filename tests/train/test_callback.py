"""What users of the callback rely on, with any Trainer."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.checkpoint_reader import fingerprint, read_checkpoint
from backtrack.run.directory import Run
from backtrack.train.trajectory.base_model import write_base
from backtrack.train.trajectory.callback import TrajectoryCallback
from tests.models import jitter, load_whole, make_base, make_tokenizer

LINEAR = ["q_proj", "v_proj", "down_proj"]
Weights = dict[str, torch.Tensor]


def model_in_memory(*, tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def token_rows(count: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 60, (count, 12), generator=generator).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


class WeightRecorder(TrainerCallback):
    """Records the live weights after each step."""

    def __init__(self) -> None:
        self.weights: dict[int, Weights] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        model = live["model"]
        tensors = (
            get_peft_model_state_dict(model, save_embedding_layers=False)
            if isinstance(model, PeftModel)
            else model.state_dict()
        )
        self.weights[state.global_step] = {k: v.detach().clone() for k, v in tensors.items()}


def trainer_for(model: Any, folder: Path, *callbacks: TrainerCallback, **settings: Any) -> Trainer:
    fixed = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 2, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "max_steps": 7, "dataloader_pin_memory": False,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(**{**fixed, **settings}),
        train_dataset=token_rows(),
        eval_dataset=token_rows(4),
        callbacks=list(callbacks),
    )


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    strays = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert strays == []


def test_a_model_built_in_memory_leaves_a_run_with_its_base_and_every_step(tmp_path: Path) -> None:
    model = model_in_memory()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorder, callback = WeightRecorder(), TrajectoryCallback(tmp_path / "run", every_steps=3)

    trainer_for(model, tmp_path / "out", callback, recorder, seed=11).train()

    run = Run.open(tmp_path / "run")
    assert run.steps == (3, 6, 7)
    assert (run.manifest.method.kind, run.manifest.seed) == ("full", 11)
    assert run.entry(6).train_loss is not None
    assert_same(AutoModelForCausalLM.from_pretrained(run.base.model).state_dict(), before)
    for step in run.steps:
        assert_same(load_whole(run, step).state_dict(), recorder.weights[step])


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=LINEAR, use_rslora=True, task_type="CAUSAL_LM"),
        LoraConfig(r=4, target_modules=LINEAR, modules_to_save=["norm"], task_type="CAUSAL_LM"),
        OFTConfig(oft_block_size=8, target_modules=LINEAR, task_type="CAUSAL_LM"),
    ],
    ids=["rslora", "modules_to_save", "oft"],
)
def test_each_adapter_loads_with_stock_peft_on_the_base_that_was_written(
    tmp_path: Path, config: Any
) -> None:
    model = model_in_memory()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorder, callback = WeightRecorder(), TrajectoryCallback(tmp_path / "run", every_steps=4)

    trainer_for(get_peft_model(model, config), tmp_path / "out", callback, recorder).train()

    run = Run.open(tmp_path / "run")
    assert run.steps == (4, 7)
    assert_same(AutoModelForCausalLM.from_pretrained(run.base.model).state_dict(), before)
    for step in run.steps:
        folder = run.folder(step)
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(run.base.model), folder
        )
        found = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        assert_same(found, recorder.weights[step])


def test_a_model_can_be_placed_along_a_run_of_the_callback_alone(tmp_path: Path) -> None:
    model = get_peft_model(
        model_in_memory(), LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM")
    )
    callback = TrajectoryCallback(tmp_path / "run", every_steps=4)
    trainer = trainer_for(model, tmp_path / "out", callback)
    trainer.processing_class = trainer.callback_handler.processing_class = make_tokenizer()
    trainer.train()

    placement = Placement(callback.run, device="cpu")
    probe = torch.arange(3, 19).view(1, -1)
    placement.place(Point(step=7, alpha=1.0))
    model.eval()
    assert torch.equal(placement.model(probe).logits, model(probe).logits)


def test_the_tokenizer_and_generation_config_of_a_training_stay_with_its_run(
    tmp_path: Path, base: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config.eos_token_id = [1, 5]
    callback = TrajectoryCallback(tmp_path / "run")
    trainer = trainer_for(
        get_peft_model(model, LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM")),
        tmp_path / "out", callback,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    trainer.processing_class = trainer.callback_handler.processing_class = tokenizer

    trainer.train()

    placement = Placement(callback.run, device="cpu")
    assert placement.tokenizer.chat_template == tokenizer.chat_template
    assert placement.model.generation_config.eos_token_id == [1, 5]


ADAPTERS: dict[str, Any] = {
    "lora": LoraConfig(r=4, target_modules=LINEAR),
    "dora": LoraConfig(r=4, target_modules=LINEAR, use_dora=True),
    "lora-embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "modules-to-save": LoraConfig(r=4, target_modules=LINEAR, modules_to_save=["lm_head", "norm"]),
    "tokens": LoraConfig(r=4, target_modules=LINEAR, trainable_token_indices=[3, 5]),
    "oft": OFTConfig(oft_block_size=8, target_modules=LINEAR),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
    "ia3": IA3Config(target_modules=LINEAR, feedforward_modules=["down_proj"]),
    "ln": LNTuningConfig(target_modules=["norm", "input_layernorm"]),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type .*LlamaRMSNorm:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_is_written_without_its_adapters(tmp_path: Path, name: str, tied: bool) -> None:
    model = model_in_memory(tied=tied)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wrapped = get_peft_model(model, ADAPTERS[name])
    if name != "ln":  # it may train the base's own tensor
        jitter(wrapped, 0.1, seed=1)
    write_base(wrapped, None, tmp_path)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict(), before)


def test_a_base_loaded_from_files_is_referred_to_and_not_copied(
    tmp_path: Path, base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    callback = TrajectoryCallback(tmp_path / "run", every_steps=5)

    trainer_for(model, tmp_path / "out", callback).train()

    run = callback.run
    assert not (run.path / "base").exists()
    assert run.base.model == str(base.resolve())
    assert run.base.fingerprint == fingerprint(base)
    # The files are fp32: the path must start from what was trained.
    assert run.base.dtype == "bfloat16"
    assert {t.dtype for t in read_checkpoint(run, 7).values()} == {torch.bfloat16}


def test_the_settings_of_a_quantized_base_are_recorded(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", width=64)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings)
    callback = TrajectoryCallback(tmp_path / "run")
    config = LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    trainer_for(adapted, tmp_path / "out", callback).train()

    quantization = callback.run.base.quantization
    assert isinstance(quantization, dict)
    assert quantization["bnb_4bit_quant_type"] == "fp4"
    assert quantization["bnb_4bit_use_double_quant"] is False
    placement = Placement(Run.open(callback.run.path), device="cpu")
    placement.place(callback.run.final)
    # In evaluation mode bitsandbytes repacks weights on some CPUs; there is no dropout here.
    assert torch.equal(probe(placement.model), probe(adapted.train()))


def test_a_model_changed_since_it_was_loaded_gets_a_base_of_its_own(
    tmp_path: Path, base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    jitter(model, 0.1, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    callback = TrajectoryCallback(tmp_path / "run")
    trainer = trainer_for(model, tmp_path / "out", callback)
    trainer.callback_handler.processing_class = make_tokenizer()

    trainer.train()

    written = Path(callback.run.base.model)
    assert written == (tmp_path / "run" / "base").resolve()
    assert_same(AutoModelForCausalLM.from_pretrained(written).state_dict(), before)
    assert AutoTokenizer.from_pretrained(written)("1 + 2").input_ids


def test_an_adapter_of_another_name_is_saved_like_any_other(tmp_path: Path, base: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=LINEAR)
    callback = TrajectoryCallback(tmp_path / "run")
    trainer_for(get_peft_model(plain, config, "mine"), tmp_path / "out", callback).train()
    folder = callback.run.folder(7)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_last_step_is_the_last_step_when_the_trainer_loads_the_best_model_back(
    tmp_path: Path,
) -> None:
    recorder, callback = WeightRecorder(), TrajectoryCallback(tmp_path / "run", every_steps=3)
    trainer = trainer_for(
        model_in_memory(), tmp_path / "out", callback, recorder,
        load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps",
        eval_steps=1, save_steps=1, metric_for_best_model="runtime", learning_rate=1.0,
    )  # fmt: skip
    trainer.train()
    assert_same(
        load_whole(callback.run, 7).state_dict(),
        recorder.weights[7],
    )


class StepsAtSave(TrainerCallback):
    """Records the run's steps each time the Trainer saves its own state."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.steps: dict[int, tuple[int, ...]] = {}

    def on_save(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        self.steps[state.global_step] = Run.open(self.run).steps


def test_a_step_is_saved_before_the_trainer_saves_its_own_state_of_it(tmp_path: Path) -> None:
    recorder = StepsAtSave(tmp_path / "run")
    trainer_for(
        model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run", 3), recorder,
        save_strategy="steps", save_steps=3,
    ).train()  # fmt: skip
    assert recorder.steps == {3: (3,), 6: (3, 6), 7: (3, 6, 7)}


class StopEarly(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        control.should_training_stop = state.global_step == 4


def test_a_training_that_stops_early_saves_its_last_step(tmp_path: Path) -> None:
    callback = TrajectoryCallback(tmp_path / "run", 3)
    trainer_for(model_in_memory(), tmp_path / "out", callback, StopEarly()).train()
    assert callback.run.steps == (3, 5)


def test_a_resumed_trainer_continues_the_same_run(tmp_path: Path) -> None:
    trainer_for(
        model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run", 3),
        save_strategy="steps", save_steps=4, max_steps=6,
    ).train()  # fmt: skip
    first = Run.open(tmp_path / "run")
    assert first.steps == (3, 6)

    callback = TrajectoryCallback(tmp_path / "run", 3)
    trainer_for(model_in_memory(), tmp_path / "out", callback, max_steps=10).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")
    )

    assert callback.run.steps == (3, 6, 9, 10)
    assert callback.run.manifest == first.manifest


def test_a_finished_training_that_is_resumed_adds_no_step(tmp_path: Path) -> None:
    for is_resumed in (False, True):
        trainer_for(
            model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run", 3),
            save_strategy="steps", save_steps=3,
        ).train(resume_from_checkpoint=is_resumed)  # fmt: skip
    assert Run.open(tmp_path / "run").steps == (3, 6, 7)


def test_a_new_training_does_not_mix_into_an_old_run(tmp_path: Path) -> None:
    trainer_for(model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run")).train()
    before = Run.open(tmp_path / "run").entries()
    with pytest.raises(RunError, match="already holds a run"):
        trainer_for(
            model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run")
        ).train()
    assert Run.open(tmp_path / "run").entries() == before


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunError, match="contains other files"):
        trainer_for(
            model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run")
        ).train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_base_that_is_no_longer_known_must_be_named(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    trainer_for(model_in_memory(), tmp_path / "out", **settings).train()
    trainer = trainer_for(
        model_in_memory(), tmp_path / "out", TrajectoryCallback(tmp_path / "run"), **settings
    )
    with pytest.raises(UsageError, match="base=FOLDER_OR_NAME"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("initialization", ["pissa", "olora"])
def test_an_initialization_that_changed_the_base_needs_the_original(
    tmp_path: Path, initialization: Any
) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights=initialization)
    trainer = trainer_for(
        get_peft_model(model_in_memory(), config),
        tmp_path / "out",
        TrajectoryCallback(tmp_path / "run"),
    )
    with pytest.raises(UsageError, match="changed the base already"):
        trainer.train()
    assert list(tmp_path.glob("*run*")) == []


def test_an_initial_adapter_that_cannot_be_recomputed_is_saved_and_restores_the_base(
    tmp_path: Path, base: Path
) -> None:
    name: Any = "pissa_niter_2"
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights=name, task_type="CAUSAL_LM")
    original = AutoModelForCausalLM.from_pretrained(base)
    before = probe(original.eval())
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    trainer = trainer_for(model, tmp_path / "out", TrajectoryCallback(tmp_path / "run"))
    trainer.train()
    trained = probe(model.eval())
    run = Run.open(tmp_path / "run")
    assert (run.path / "initial" / "adapter_model.safetensors").is_file()
    placement = Placement(run)
    placement.place(Point.base())
    assert torch.equal(probe(placement.model), before)
    placement.place(run.final)
    assert float((trained - before).abs().max()) > 1e-3
    torch.testing.assert_close(probe(placement.model), trained, atol=1e-5, rtol=0)


def test_an_initialization_whose_adapter_cannot_be_reloaded_is_refused(
    tmp_path: Path, base: Path
) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    claimed: Any = model.peft_config["default"]
    claimed.init_lora_weights = "loftq"  # whose own initialization needs a GPU
    trainer = trainer_for(model, tmp_path / "out", TrajectoryCallback(tmp_path / "run"))
    with pytest.raises(UsageError, match="does not fit the original base"):
        trainer.train()


def test_steps_are_counted_from_one() -> None:
    with pytest.raises(UsageError, match=r"every_steps: .* 1, got 0"):
        TrajectoryCallback("run", every_steps=0)


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Limit the size of files, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillTheDisk(TrainerCallback):
    """From a step on, no weights fit on the disk; earlier ones are written first."""

    def __init__(self, step: int, run: Path) -> None:
        self.step = step
        self.run = run

    def on_step_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        if state.global_step == self.step:
            while not Run.open(self.run).steps:
                time.sleep(0.01)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))


def test_a_full_disk_stops_training_and_leaves_earlier_checkpoints_intact(tmp_path: Path) -> None:
    trainer = trainer_for(
        model_in_memory(),
        tmp_path / "out",
        TrajectoryCallback(tmp_path / "run", 3),
        FillTheDisk(step=4, run=tmp_path / "run"),
    )
    with (
        files_limited_to(resource.RLIM_INFINITY),
        pytest.raises(CheckpointError, match=r"step 6 could not be written .*Make room"),
    ):
        trainer.train()

    run = Run.open(tmp_path / "run")
    assert run.steps == (3,)
    assert sorted(p.name for p in run.trajectory.iterdir()) == ["index.jsonl", "step-00000003"]
    load_whole(run, 3)


class RankAllocation(TrainerCallback):
    """Calls AdaLoRA's allocator as PEFT documents it, in a training loop of one's own."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        live["model"].base_model.update_and_allocate(state.global_step)


class LiveProbes(TrainerCallback):
    """Records probe logits of the live model after each step."""

    def __init__(self) -> None:
        self.logits: dict[int, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        self.logits[state.global_step] = probe(live["model"].eval()).clone()
        live["model"].train()


@pytest.mark.parametrize("name", ["default", "mine"])
def test_adalora_in_a_trainer_of_ones_own_is_saved_at_every_step(
    tmp_path: Path, base: Path, name: str
) -> None:
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=7, target_modules=LINEAR,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config, adapter_name=name)
    probes = LiveProbes()
    callback = TrajectoryCallback(tmp_path / "run", every_steps=1)
    trainer_for(
        model, tmp_path / "out", RankAllocation(), callback, probes,
        save_strategy="steps", save_steps=2,
    ).train()  # fmt: skip
    trained: Any = model.peft_config[name]
    assert trained.rank_pattern, "no rank was removed: the test tests nothing"
    run = callback.run
    assert run.steps == tuple(range(1, 8))
    placement = Placement(run)
    for step in (7, 2, 5, 1):
        loaded = AutoModelForCausalLM.from_pretrained(base)
        stock = probe(PeftModel.from_pretrained(loaded, str(run.folder(step))).eval())
        assert torch.equal(stock, probes.logits[step])
        placement.place(Point(step=step))
        assert torch.equal(probe(placement.model), probes.logits[step])
