"""DPO, KTO and ORPO: preferred answers win; trajectory and resume work as under SFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backtrack.errors import RecipeError, UsageError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.torch_model import TorchModel
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from backtrack.run.files import read_lines
from backtrack.train.plan.plan import make_plan
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.build import num_steps as run_length
from backtrack.train.trainers.data import load_preferences
from backtrack.train.trainers.probes import PROBE_FILE, ProbeEvaluation
from backtrack.train.trainers.train import train
from tests.models import make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


PARADIGMS = ("dpo", "kto", "orpo")
SETTINGS = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
            "max_length": 32, "save_steps": 3, "beta": 1.0}  # fmt: skip


def pairs_of(folder: Path, **fields: str) -> Path:
    """Sums whose right answer is preferred; keywords replace formats of the columns."""
    formats = {"prompt": "{i} + {i} =", "chosen": " {double}", "rejected": " no", **fields}
    rows = [
        {name: text.format(i=i, double=2 * i) for name, text in formats.items() if text}
        for i in range(32)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def labeled(folder: Path, label: Any = None) -> Path:
    """The answers of the pairs one by one, desirable or as `label` says, the right ones first."""
    rows = [
        {"prompt": f"{i} + {i} =", "completion": answer, "label": good if label is None else label}
        for good in (True, False)
        for i in range(16)
        for answer in (f" {2 * i}" if good else " no",)
    ]
    path = folder / "labeled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def tiny(base: Path, folder: Path, paradigm: str = "dpo", **sections: Any) -> Recipe:
    path = str(pairs_of(folder))
    pairs = {"kind": "preference", "path": path, "score": "margin", "range": [-50, 50]}
    return Recipe.model_validate({
        "name": "tiny", "base": str(base), "output": str(folder / "runs"),
        "method": {"kind": "lora", "r": 4, "target_modules": "all-linear"},
        "data": {"train": path}, "trajectory": {"every_steps": 3},
        paradigm: SETTINGS,
        "objectives": [{**pairs, "role": "target"}, {**pairs, "role": "general", "name": "same"}],
        **sections,
    })  # fmt: skip


def margin(run: Run, recipe: Recipe, point: Point) -> float:
    """Mean margin of the pairs at a point."""
    placement = Placement(run, device="cpu")
    objective = build_objectives(recipe, placement.tokenizer)[0]
    placement.place(point)
    asked = TorchModel(placement.model, placement.tokenizer, 8)
    scores = objective.measure(asked, objective.item_ids)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("paradigm", PARADIGMS)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_preferred_answers_gain_along_the_path(
    base: Path, tmp_path: Path, kind: str, paradigm: str
) -> None:
    given = {} if kind == "lora" else {"method": {"kind": "full"}}
    recipe = tiny(base, tmp_path, paradigm, **given)
    run = train(recipe)
    assert run.steps == (3, 6)
    alphas = (0.0, 0.5, 1.0)
    margins = [margin(run, recipe, Point(step=6, alpha=alpha)) for alpha in alphas]
    assert margins == sorted(margins)
    assert margins[2] > margins[0] + 0.5


def test_kto_trains_on_labeled_answers_mixed_by_the_seed(base: Path, tmp_path: Path) -> None:
    data = {"train": str(labeled(tmp_path))}
    recipe = tiny(base, tmp_path, "kto", data=data)
    trainer = build_trainer(recipe, tmp_path / "trainer")
    labels = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert all(len(set(each)) == 2 for each in labels)
    run = train(recipe)
    margins = [margin(run, recipe, Point(step=6, alpha=alpha)) for alpha in (0.0, 1.0)]
    assert margins[1] > margins[0] + 1


@pytest.mark.parametrize("paradigm", ["dpo", "kto"])
def test_the_reference_of_a_whole_model_is_the_base_at_its_revision(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paradigm: str
) -> None:
    revisions = []
    load = AutoModelForCausalLM.from_pretrained

    def noted(*args: Any, **fields: Any) -> Any:
        revisions.append(fields.get("revision"))
        return load(*args, **fields)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    recipe = tiny(base, tmp_path, paradigm, method={"kind": "full"})
    section = recipe.base.model_copy(update={"revision": "v1"})
    recipe = recipe.model_copy(update={"base": section})
    trainer = build_trainer(recipe, tmp_path / "trainer")
    assert revisions == ["v1", "v1"]
    live, reference = trainer.model.state_dict(), trainer.ref_model.state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in reference.items())


@pytest.mark.parametrize("paradigm", ["dpo", "kto"])
def test_an_adapters_reference_is_the_base_without_a_second_copy(
    base: Path, tmp_path: Path, paradigm: str
) -> None:
    trainer = build_trainer(tiny(base, tmp_path, paradigm), tmp_path / "trainer")
    assert trainer.ref_model is None
    assert isinstance(trainer.model, PeftModel)
    assert list(trainer.model.peft_config) == ["default"]
    stock = AutoModelForCausalLM.from_pretrained(base).state_dict()
    with trainer.model.disable_adapter():
        live = trainer.model.get_base_model().state_dict()
    assert torch.equal(live["model.embed_tokens.weight"], stock["model.embed_tokens.weight"])


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_watch_sees_the_margin_grow_and_leaves_training_unchanged(
    base: Path, tmp_path: Path, paradigm: str
) -> None:
    plain = train(tiny(base, tmp_path, paradigm, name="plain"))
    recipe = tiny(base, tmp_path, paradigm, watch={"every_steps": 3, "items": 8})
    run = train(recipe)
    weights = {r.entry(6).sha256["adapter_model.safetensors"] for r in (run, plain)}
    assert len(weights) == 1
    first, middle, last = read_lines(run.path / PROBE_FILE, ProbeEvaluation)
    assert (first.step, middle.step, last.step) == (0, 3, 6)
    assert first.target < middle.target < last.target
    assert first.drop.estimate == 0
    assert last.drop.estimate < 0, "what is `general` here is the same margin, and grows too"


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_training_that_is_resumed_ends_as_one_that_was_not(
    base: Path, tmp_path: Path, paradigm: str
) -> None:
    whole = train(tiny(base, tmp_path, paradigm))
    (tmp_path / "cut").mkdir()
    recipe = tiny(base, tmp_path / "cut", paradigm)

    def stop(progress: Any) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, on_progress=stop)
    resumed = train(recipe, resume=True)
    for name, tensor in read_checkpoint(whole, 6).items():
        assert torch.equal(tensor, read_checkpoint(resumed, 6)[name]), name


def counts_copy(recipe: Recipe) -> bool:
    note = "`{}` needs a second copy of the weights as the reference model"
    return note.format(recipe.paradigm) in make_plan(recipe).notes


def test_a_plan_counts_the_reference_of_a_whole_model(base: Path, tmp_path: Path) -> None:
    adapter = make_plan(tiny(base, tmp_path))
    assert adapter.trainer == "DPO, lora"
    assert adapter.num_steps == 6
    assert not any("second copy" in note for note in adapter.notes)
    full: dict[str, Any] = {"method": {"kind": "full"}}
    counted = {paradigm: counts_copy(tiny(base, tmp_path, paradigm, **full))
               for paradigm in PARADIGMS}  # fmt: skip
    assert counted == {"dpo": True, "kto": True, "orpo": False}
    before = {**SETTINGS, "precompute_ref_log_probs": True}
    assert not counts_copy(tiny(base, tmp_path, dpo=before, **full))


@pytest.mark.parametrize(
    ("paradigm", "takes_pairs", "num_steps"),
    [("dpo", True, 4), ("kto", True, 8), ("kto", False, 4)],
)
def test_a_plan_counts_the_steps_training_takes(
    base: Path, tmp_path: Path, paradigm: str, takes_pairs: bool, num_steps: int
) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != "max_steps"}
    sections: dict[str, Any] = {paradigm: {**settings, "num_train_epochs": 1}}
    if not takes_pairs:
        sections["data"] = {"train": str(labeled(tmp_path))}
    recipe = tiny(base, tmp_path, paradigm, **sections)
    assert make_plan(recipe).num_steps == num_steps
    assert run_length(build_trainer(recipe, tmp_path / "trainer")) == num_steps


def test_formats_and_chats_make_pairs(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = str(pairs_of(tmp_path, question="{i}?", prompt=""))
    section = tiny(tmp_path, tmp_path, data={
        "train": path, "prompt": "Q {question}", "chat": True, "system": "be brief",
    }).data  # fmt: skip
    assert section is not None
    pairs_of(tmp_path, question="{i}?", prompt="")
    first = load_preferences(section, tokenizer, "dpo")[1]
    assert first["prompt"] == [{"role": "system", "content": "be brief"},
                               {"role": "user", "content": "Q 1?"}]  # fmt: skip
    assert first["chosen"] == [{"role": "assistant", "content": "2"}]
    assert first["rejected"] == [{"role": "assistant", "content": "no"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"rejected": ""}, "but `orpo` needs `chosen` and `rejected`"),
     ({"rejected": " {double}"}, "item 0: `chosen` and `rejected` are the same")],
)  # fmt: skip
def test_data_without_pairs_is_refused(tmp_path: Path, columns: Any, said: str) -> None:
    section = tiny(tmp_path, tmp_path).data
    assert section is not None
    pairs_of(tmp_path, **columns)
    with pytest.raises(UsageError, match=said):
        load_preferences(section, make_tokenizer(), "orpo")


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    section = tiny(tmp_path, tmp_path, data={"train": str(labeled(tmp_path, label="yes"))}).data
    assert section is not None
    with pytest.raises(UsageError, match="item 0: `label` must be true for a desirable answer"):
        load_preferences(section, make_tokenizer(), "kto")
    with pytest.raises(UsageError, match="but `dpo` needs `chosen` and `rejected`"):
        load_preferences(section, make_tokenizer(), "dpo")


def test_what_contradicts_itself_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of `sft` and `dpo`"):
        tiny(base, tmp_path, sft={"max_steps": 2})
    lora = {"kind": "lora", "r": 4}
    with pytest.raises(UsageError, match="The reference of `dpo` is the model without its adap"):
        train(tiny(base, tmp_path, method={**lora, "init_lora_weights": "pissa"}))
    for paradigm in PARADIGMS:
        with pytest.raises(
            RecipeError, match=f"{paradigm}.betta: unknown key. Did you mean 'beta'"
        ):
            train(tiny(base, tmp_path, paradigm, **{paradigm: {"betta": 0.1}}))
    with pytest.raises(UsageError, match="The reference of `kto` is the model without its adap"):
        train(tiny(base, tmp_path, "kto", method={**lora, "init_lora_weights": "pissa"}))


def test_eva_is_computed_from_batches_the_model_reads_or_refused(
    base: Path, tmp_path: Path
) -> None:
    method = {"kind": "lora", "r": 4, "init_lora_weights": "eva"}
    for paradigm in ("dpo", "kto"):
        trainer = build_trainer(tiny(base, tmp_path, paradigm, method=method), tmp_path / paradigm)
        assert trainer.model.peft_config["default"].init_lora_weights == "eva"
    with pytest.raises(UsageError, match="batches for `orpo` have none as the model reads them"):
        build_trainer(tiny(base, tmp_path, "orpo", method=method), tmp_path / "orpo")
    rewards = [{"kind": "format", "pattern": ".*"}]
    recipe = tiny(base, tmp_path, "grpo", method=method, rewards=rewards, grpo={"max_steps": 1})
    with pytest.raises(UsageError, match="batches for `grpo` have none as the model reads them"):
        build_trainer(recipe, tmp_path / "grpo")


def test_a_reward_model_is_refused_in_words(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a head that the base does not have: at alpha 0 it"):
        tiny(base, tmp_path, reward={"max_steps": 2})
