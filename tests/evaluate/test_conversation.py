"""Talking to a model: the same text as it completes, piece by piece, at a point that moves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from backtrack.cli import app
from backtrack.errors import ObjectiveError
from backtrack.evaluate.conversation import Conversation
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.language_model import CompletionLimits, Sampling
from backtrack.evaluate.torch_model import TorchModel
from backtrack.path.placement import Placement
from backtrack.point import Point
from tests.models import make_base, make_peft_run

if TYPE_CHECKING:
    from backtrack.run.directory import Run

pytestmark = pytest.mark.filterwarnings("ignore")

LIMITS = CompletionLimits(12, ())
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and refuses is defined %}"
    "{{ raise_exception('no system here') }}{% endif %}{{ m.role[0] }}:{{ m.content }};"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("chat")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    return make_peft_run(folder / "run", make_base(folder / "base"), config)


@pytest.fixture(scope="module")
def placement(run: Run) -> Placement:
    return Placement(run)


def ignore(_piece: str) -> None:
    """Show nothing."""


def talk(run: Run, lines: str, *options: str) -> Any:
    arguments = ["chat", str(run.path), "--max-tokens", "12", *options]
    return CliRunner().invoke(app, arguments, input=lines)


def expected(placement: Placement, point: Point, prompt: str) -> str:
    placement.place(point)
    model = TorchModel(placement.model, placement.tokenizer, "auto")
    return model.complete([encode(placement.tokenizer, prompt)], LIMITS)[0][0]


@pytest.mark.parametrize("sampling", [None, Sampling(1, 1.0, seed=3)])
def test_a_streamed_text_is_the_completion_and_comes_in_pieces(
    placement: Placement, sampling: Sampling | None
) -> None:
    placement.place(Point(step=20))
    model = TorchModel(placement.model, placement.tokenizer, "auto")
    pieces: list[str] = []
    prompt = encode(placement.tokenizer, "two and two")
    text = model.stream(prompt, LIMITS, pieces.append, sampling)
    assert text == "".join(pieces) == model.complete([prompt], LIMITS, sampling)[0][0]
    assert len([piece for piece in pieces if piece]) > 1


def test_a_character_of_several_tokens_is_one_piece(placement: Placement) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({each: i for i, each in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    written = tokenizer("a\N{SNOWMAN}b")["input_ids"]
    assert len(written) == 5
    model = TorchModel(placement.model, tokenizer, "auto")
    pieces: list[str] = []
    show = _shown_by(model, pieces)
    for end in range(1, len(written) + 1):
        show(written[:end])
    assert [piece for piece in pieces if piece] == ["a", "\N{SNOWMAN}", "b"]


def _shown_by(model: TorchModel, pieces: list[str]) -> Any:
    """What `stream` calls with the tokens so far."""
    caught: list[Any] = []

    def catch(_model: Any, _prompts: Any, choice: Any, _budget: Any) -> Any:
        caught.append(choice._on_tokens)
        yield 0, [[]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backtrack.evaluate.plain_decoding.completions", catch)
        model.stream([1], LIMITS, pieces.append)
    pieces.clear()
    return caught[0]


def test_a_chat_template_gets_every_turn_and_plain_text_is_continued(
    placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement.place(Point(step=20))
    model = TorchModel(placement.model, placement.tokenizer, "auto")
    asked: list[str] = []
    stream = model.stream

    def noting(prompt: list[int], *rest: Any) -> str:
        asked.append(placement.tokenizer.decode(prompt))
        return stream(prompt, *rest)

    monkeypatch.setattr(model, "stream", noting)
    plain = Conversation(model, LIMITS, system="be kind")
    first = plain.ask("one", ignore)
    plain.copy().ask("two", ignore)
    plain.reset()
    plain.ask("three", ignore)
    assert asked == ["be kind\none", f"be kind\none{first}\ntwo", "be kind\nthree"]
    asked.clear()
    monkeypatch.setattr(placement.tokenizer, "chat_template", TEMPLATE)
    turns = Conversation(model, LIMITS, system="be kind")
    first = turns.ask("one", ignore)
    turns.ask("two", ignore)
    assert asked[1] == f"s:be kind;u:one;a:{first};u:two;a:"
    refusing = "{% set refuses = 1 %}" + TEMPLATE
    monkeypatch.setattr(placement.tokenizer, "chat_template", refusing)
    with pytest.raises(ObjectiveError, match=r"no system here.*Leave out --system"):
        turns.ask("three", ignore)


def test_the_model_answers_where_it_is_told_to_be(run: Run, placement: Placement) -> None:
    asked = "7 plus 5"
    half = Point(step=10, alpha=0.5)
    lines = (
        f"/base\n{asked}\n/at 10:0.5\n/reset\n{asked}\n/final\n/reset\n\n{asked}\n/quit\n{asked}\n"
    )
    done = talk(run, lines)
    assert done.exit_code == 0, done.output
    points = (Point.base(), half, run.final)
    assert (
        done.stdout.splitlines()
        == "\n".join(expected(placement, point, asked) for point in points).splitlines()
    )
    assert "now at step 10 alpha 0.5" in done.stderr


def test_both_answers_stand_side_by_side_and_the_point_is_kept(
    run: Run, placement: Placement
) -> None:
    lines = "/at 0.5\n/both\n7 plus 5\n/both\n/reset\n7 plus 5\n"
    done = talk(run, lines, "--json")
    assert done.exit_code == 0, done.output
    both, alone = map(json.loads, done.stdout.splitlines())
    here = Point(step=20, alpha=0.5)
    texts = {str(p): expected(placement, p, "7 plus 5") for p in (Point.base(), here)}
    assert both == {"asked": "7 plus 5", "answers": texts}
    assert alone["answers"] == {str(here): texts[str(here)]}
    shown = talk(run, "/both\n7 plus 5\n").stdout.splitlines()
    assert shown[0].split("  ")[0] == "base"
    assert "step 20 alpha 1" in shown[0]


def test_a_point_the_run_lacks_and_an_unknown_command_are_named(run: Run) -> None:
    done = talk(run, "/at 15:0.5\n")
    assert "no checkpoint of step 15" in str(done.exception)
    done = talk(run, "/go\n/at chosen\n")
    assert "There is no command /go" in done.stderr
    assert "is not a point" in str(done.exception)


def test_an_answer_takes_at_most_half_of_a_short_context(run: Run) -> None:
    done = CliRunner().invoke(app, ["chat", str(run.path), "--json"], input="a b c\n")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["asked"] == "a b c"
    assert list(said["answers"]) == ["step 20 alpha 1"]
