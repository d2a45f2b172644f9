"""DPO: the preferred answers win, and trajectory, measuring and resume work as under SFT."""

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
from backtrack.train.plan.plan import make_plan
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.data import load_pairs
from backtrack.train.trainers.train import train
from tests.models import make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


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


def tiny(base: Path, folder: Path, **sections: Any) -> Recipe:
    path = str(pairs_of(folder))
    pairs = {"kind": "preference", "path": path, "score": "margin", "range": [-50, 50]}
    return Recipe.model_validate({
        "name": "tiny", "base": str(base), "output": str(folder / "runs"),
        "method": {"kind": "lora", "r": 4, "target_modules": "all-linear"},
        "data": {"train": path}, "trajectory": {"every_steps": 3},
        "dpo": {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
                "max_length": 32, "save_steps": 3},
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


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_preferred_answers_gain_along_the_path(base: Path, tmp_path: Path, kind: str) -> None:
    given = {} if kind == "lora" else {"method": {"kind": "full"}}
    recipe = tiny(base, tmp_path, **given)
    run = train(recipe)
    assert run.steps == (3, 6)
    alphas = (0.0, 0.5, 1.0)
    margins = [margin(run, recipe, Point(step=6, alpha=alpha)) for alpha in alphas]
    assert margins == sorted(margins)
    assert margins[2] > margins[0] + 1


def test_an_adapters_reference_is_the_base_without_a_second_copy(
    base: Path, tmp_path: Path
) -> None:
    trainer = build_trainer(tiny(base, tmp_path), tmp_path / "trainer")
    assert trainer.ref_model is None
    assert isinstance(trainer.model, PeftModel)
    assert list(trainer.model.peft_config) == ["default"]
    stock = AutoModelForCausalLM.from_pretrained(base).state_dict()
    with trainer.model.disable_adapter():
        live = trainer.model.get_base_model().state_dict()
    assert torch.equal(live["model.embed_tokens.weight"], stock["model.embed_tokens.weight"])


def test_a_training_that_is_resumed_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    whole = train(tiny(base, tmp_path))
    (tmp_path / "cut").mkdir()
    recipe = tiny(base, tmp_path / "cut")

    def stop(progress: Any) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, on_progress=stop)
    resumed = train(recipe, resume=True)
    for name, tensor in read_checkpoint(whole, 6).items():
        assert torch.equal(tensor, read_checkpoint(resumed, 6)[name]), name


def test_a_plan_counts_the_reference_of_a_whole_model(base: Path, tmp_path: Path) -> None:
    adapter = make_plan(tiny(base, tmp_path))
    whole = make_plan(tiny(base, tmp_path, method={"kind": "full"}))
    assert adapter.trainer == "DPO, lora"
    assert adapter.num_steps == 6
    assert not any("second copy" in note for note in adapter.notes)
    assert "`dpo` needs a second copy of the weights as the reference model" in whole.notes


def test_formats_and_chats_make_pairs(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = str(pairs_of(tmp_path, question="{i}?", prompt=""))
    section = tiny(tmp_path, tmp_path, data={
        "train": path, "prompt": "Q {question}", "chat": True, "system": "be brief",
    }).data  # fmt: skip
    assert section is not None
    pairs_of(tmp_path, question="{i}?", prompt="")
    first = load_pairs(section, tokenizer)[1]
    assert first["prompt"] == [{"role": "system", "content": "be brief"},
                               {"role": "user", "content": "Q 1?"}]  # fmt: skip
    assert first["chosen"] == [{"role": "assistant", "content": "2"}]
    assert first["rejected"] == [{"role": "assistant", "content": "no"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"rejected": ""}, "but `dpo` needs `chosen` and `rejected`"),
     ({"rejected": " {double}"}, "item 0: `chosen` and `rejected` are the same")],
)  # fmt: skip
def test_data_without_pairs_is_refused(tmp_path: Path, columns: Any, said: str) -> None:
    section = tiny(tmp_path, tmp_path).data
    assert section is not None
    pairs_of(tmp_path, **columns)
    with pytest.raises(UsageError, match=said):
        load_pairs(section, make_tokenizer())


def test_what_contradicts_itself_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of `sft` and `dpo`"):
        tiny(base, tmp_path, sft={"max_steps": 2})
    lora = {"kind": "lora", "r": 4}
    with pytest.raises(UsageError, match="The reference of `dpo` is the model without its adap"):
        train(tiny(base, tmp_path, method={**lora, "init_lora_weights": "pissa"}))
    with pytest.raises(RecipeError, match="betta"):
        train(tiny(base, tmp_path, dpo={"betta": 0.1}))
