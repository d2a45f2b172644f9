"""Along the path only weights move: all else is the checkpoint's, also in an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.evaluate.language_model import CompletionLimits
from backtrack.evaluate.torch_model import TorchModel
from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from backtrack.run.model_files import model_files
from tests.models import jitter, make_base, make_full_run, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT, ANSWER, END = "2+5=", "7", "<|end|>"
CHAT = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
LIMITS = CompletionLimits(max_new_tokens=8, stop=())


def tokenizer_with_end() -> Any:
    """The base's tokenizer, in which the unknown token is called `<|end|>`."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([END], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose vocabulary has rows to spare, and a token that no file says ends a turn."""
    folder = tmp_path_factory.mktemp("files") / "base"
    make_base(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tokenizer_with_end()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path) -> Any:
    """The base, trained to answer the prompt, to end its turn by `<|end|>`, and to run on."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = tokenizer_with_end()
    ids = tokenizer(f"{PROMPT}{ANSWER}{END}{ANSWER}{END}{ANSWER}{END}", return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(**ids, labels=ids["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def completion(placement: Placement) -> str:
    model = TorchModel(placement.model, placement.tokenizer, batch_size=1)
    ids = placement.tokenizer(PROMPT)["input_ids"]
    return model.complete([ids], LIMITS)[0][0]


def stock_completion(folder: Path) -> str:
    """What stock transformers writes with the model and the tokenizer of a folder."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def _in_generation_config(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[len(make_tokenizer())])


def _in_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", eos_token_id=len(make_tokenizer()))


def _in_tokenizer(folder: Path) -> None:
    tokenizer = tokenizer_with_end()
    tokenizer.eos_token = END
    tokenizer.save_pretrained(folder)


def _in_template(folder: Path) -> None:
    tokenizer = tokenizer_with_end()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "name_end", [_in_generation_config, _in_config, _in_tokenizer, _in_template]
)
def test_an_answer_ends_where_the_checkpoint_ends_it(
    name_end: Callable[[Path], None], base: Path, tuned: Any, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-5"
    tuned.save_pretrained(checkpoint)
    name_end(checkpoint)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    assert completion(placement) == ANSWER
    export(run, run.final, tmp_path / "export", device="cpu")
    assert stock_completion(tmp_path / "export") == ANSWER


def test_where_base_and_checkpoint_end_differently_both_end_an_answer(
    base: Path, tuned: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-5"
    tuned.save_pretrained(checkpoint)
    _in_generation_config(checkpoint)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    caplog.clear()
    placement = Placement(run, device="cpu")
    assert placement.model.generation_config.eos_token_id == [len(make_tokenizer()), 1]
    assert "An answer ends at <|end|>, and also at </s>" in caplog.text


def test_a_checkpoint_that_ends_as_its_base_does_changes_nothing_and_says_nothing(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_full_run(tmp_path / "run", base)
    assert Placement(run, device="cpu").model.generation_config.eos_token_id == 1
    assert "ends at" not in caplog.text


def test_a_tokenizer_at_the_top_of_the_output_folder_is_the_runs(
    base: Path, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    jitter(adapted, 0.05, seed=1)
    adapted.save_pretrained(str(tmp_path / "out" / "checkpoint-5"))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "out")
    run = adopt(tmp_path / "out", runs=tmp_path / "runs")
    for path in (tmp_path / "out").glob("tokenizer*"):
        path.unlink()  # the run has its own copy
    placement = Placement(run, device="cpu")
    assert placement.tokenizer("<|im_start|>")["input_ids"] == [len(make_tokenizer())]
    export(run, run.final, tmp_path / "export", device="cpu")
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert exported("<|im_start|>")["input_ids"] == [len(make_tokenizer())]


def test_a_tokenizer_is_exported_as_it_was_without_a_padding_token(
    base: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "tuned"
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(checkpoint)
    tokenizer = tokenizer_with_end()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(checkpoint)
    run = adopt(checkpoint, base=str(base), runs=tmp_path / "runs")
    export(run, Point(step=1, alpha=0.5), tmp_path / "export", device="cpu")
    for path in checkpoint.glob("tokenizer*"):
        assert (tmp_path / "export" / path.name).read_bytes() == path.read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "export").pad_token is None


def test_measurements_name_the_files_that_decided_them(base: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuned"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(checkpoint)
    before = adopt(checkpoint, base=str(base), runs=tmp_path / "runs").model_digest
    assert adopt(checkpoint, base=str(base), runs=tmp_path / "runs").model_digest == before
    (checkpoint / "chat_template.jinja").write_text(CHAT)
    assert adopt(checkpoint, base=str(base), runs=tmp_path / "runs").model_digest != before


def test_a_template_without_a_tokenizer_is_put_on_the_bases(base: Path, tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run", base)
    (run.folder(20) / "chat_template.jinja").write_text(CHAT)
    tokenizer = Placement(run, device="cpu").tokenizer
    assert tokenizer.chat_template == CHAT
    assert len(tokenizer) == len(tokenizer_with_end())


def test_a_tokenizer_without_a_template_does_not_get_the_bases(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHAT)
    run = make_full_run(tmp_path / "run", base)
    make_tokenizer().save_pretrained(run.folder(20))
    assert "chat_template.jinja" not in model_files(run).paths


def test_points_lie_under_the_configuration_of_the_checkpoint(base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    jitter(model, 0.02, seed=1, only_trainable=False)
    checkpoint = tmp_path / "tuned"
    model.save_pretrained(checkpoint)
    change(checkpoint / "config.json", rms_norm_eps=0.5)
    run = adopt(checkpoint, base=str(base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    placement.place(run.final)
    assert torch.equal(
        probe(placement.model), probe(AutoModelForCausalLM.from_pretrained(checkpoint).eval())
    )
    placement.place(Point.base())
    shutil.copytree(base, tmp_path / "as")
    change(tmp_path / "as" / "config.json", rms_norm_eps=0.5)
    assert torch.equal(
        probe(placement.model), probe(AutoModelForCausalLM.from_pretrained(tmp_path / "as").eval())
    )
    export(run, Point(step=1, alpha=0.5), tmp_path / "export", device="cpu")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["rms_norm_eps"] == 0.5


def test_a_head_that_training_untied_moves_apart_from_the_embedding(
    base: Path, tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "tuned")
    run = adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs")
    placement = Placement(run, device="cpu")
    placement.place(Point(step=1, alpha=0.5))
    own = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    halfway = own + 0.5 * (model.lm_head.weight - own)
    torch.testing.assert_close(placement.model.lm_head.weight, halfway, atol=1e-6, rtol=0)


def test_a_generation_config_that_transformers_refuses_to_save_is_exported_as_it_is(
    base: Path, tuned: Any, tmp_path: Path
) -> None:
    """Llama 2's and Vicuna's have a temperature, and no sampling."""
    tuned.save_pretrained(tmp_path / "tuned")
    change(tmp_path / "tuned" / "generation_config.json", do_sample=False, temperature=0.9)
    run = adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs")
    export(run, run.final, tmp_path / "export", device="cpu")
    own, exported = (
        json.loads((tmp_path / name / "generation_config.json").read_text())
        for name in ("tuned", "export")
    )
    assert exported == own
