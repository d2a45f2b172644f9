"""Make the tiny model and the questions that `backtrack demo` works on.

    python examples/make_demo_model.py [FOLDER]

A Llama of under a million weights is pretrained from nothing, on a CPU, on questions in plain
English that this script makes up. It learns the GENERAL skills well, and of the TARGET skill,
sums told as a story, the easy part: small numbers. The demo then fine-tunes it on stories with
two-digit numbers and measures what that does to everything else.

Written into FOLDER:
    model/                   configuration, fp32 weights (safetensors), tokenizer
    train.jsonl              {"prompt", "completion"}: stories to fine-tune on
    target.jsonl             {"id", "prompt", "completion"}: stories to measure on
    general-<skill>.jsonl    the same, one file a general skill
    MODEL.md                 what it is, what it scores, how to make it again

Promised: no prompt that is measured was trained on, in pretraining or in fine-tuning. One seed
gives the same files on the same machine with the same libraries and number of threads.
Not promised: that a measured item is unlike every trained one. `opposites` has few items: each is
measured in a wording it was not trained in, but was seen in others, since a fact can only be
recalled. In `sums` and `counting` the swapped sum or the same answer may have been trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "backtrack" / "assets" / "demo"

END = "<|end|>"
PAD = "<|pad|>"
VOCABULARY_SIZE = 896
MAX_TOKENS = 128

NUM_TARGET_ITEMS = 800
NUM_GENERAL_ITEMS = 200
NUM_TRAIN_ITEMS = 3000

BATCH_ITEMS = 64
NUM_PARTS = 2
"""A batch runs in parts of like length: so less of it is padding."""
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 150
PROMPT_WEIGHT = 0.1
"""Weight of a prompt's token in the loss, an answer's being 1: prompts are mostly chance."""


@dataclass(frozen=True)
class Item:
    """A question and its one right answer; `completion` opens with the space that parts them."""

    prompt: str
    completion: str


def item(prompt: str, answer: object) -> Item:
    return Item(prompt, f" {answer}")


# The skills. Each draws one item from its space.


def words(text: str) -> list[str]:
    return text.split()


PAIRS = [
    pair.split("/")
    for pair in words("""
        hot/cold big/small fast/slow high/low open/closed full/empty hard/soft early/late
        long/short rich/poor old/young wet/dry light/dark loud/quiet strong/weak
        thick/thin wide/narrow deep/shallow clean/dirty happy/sad near/far first/last
        left/right up/down in/out day/night black/white good/bad true/false cheap/dear
        sweet/sour sharp/blunt tight/loose brave/afraid alive/dead awake/asleep begin/end
        give/take push/pull win/lose buy/sell come/go laugh/cry remember/forget love/hate
        north/south east/west friend/enemy summer/winter heaven/hell top/bottom front/back
        inside/outside before/after above/below always/never everything/nothing king/queen
        question/answer
    """)
]
OPPOSITE_WORDINGS = (
    "What is the opposite of {}?",
    "Which word means the opposite of {}?",
    "Name the opposite of {}:",
    "The opposite of {} is",
    "Not {} but",
    "If it is not {}, what is it?",
)
KINDS = {
    "an animal": words("dog cat horse cow sheep pig goat duck hen mouse fox bear wolf lion"),
    "a colour": words("red blue green black white brown pink grey yellow purple"),
    "something to eat": words("bread cheese soup rice cake egg apple pear plum honey meat fish"),
    "something to wear": words("coat hat shoe shirt glove sock scarf belt dress skirt boot cap"),
    "part of the body": words("head hand foot nose ear eye mouth knee arm leg back neck finger"),
    "found in a house": words("door window chair table lamp bed roof stair wall shelf floor"),
}
PLACES = words("first second third fourth")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = words(
    "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Lena Max Nora Oscar Paula Tom"
)
GOODS = words("shells stamps coins cards beads nuts apples pears plums stones books pens")
GAINS = (
    "{name} has {a} {goods} and finds {b} more. How many {goods} are there now?",
    "{name} had {a} {goods} and then bought {b} more. How many {goods} is that?",
    "There are {a} {goods} in a box. {name} puts in {b} more. How many {goods} are in the box?",
    "{name} has {a} {goods} and {other} has {b}. How many {goods} do they have together?",
)
LOSSES = (
    "{name} has {a} {goods} and loses {b}. How many {goods} are left?",
    "{name} had {a} {goods} and then sold {b}. How many {goods} is that?",
    "There are {a} {goods} in a box. {name} takes out {b}. How many {goods} are in the box?",
    "{name} has {a} {goods} and gives {b} to {other}. How many {goods} does {name} keep?",
)


def opposites(rng: random.Random) -> Item:
    word, other = rng.sample(rng.choice(PAIRS), 2)
    return item(rng.choice(OPPOSITE_WORDINGS).format(word), other)


def compare(rng: random.Random) -> Item:
    numbers = rng.sample(range(100, 1000), 2)
    word, best = rng.choice((("larger", max(numbers)), ("smaller", min(numbers))))
    return item(f"Which number is {word}, {numbers[0]} or {numbers[1]}?", best)


def letters(rng: random.Random) -> Item:
    drawn = rng.sample(LETTERS, 3)
    return item(f"Put the letters {', '.join(drawn)} in order:", ", ".join(sorted(drawn)))


def counting(rng: random.Random) -> Item:
    stride = rng.choice((-1, 1)) * rng.randint(1, 12)
    start = rng.randint(max(0, -3 * stride), 99 - max(0, 3 * stride))
    shown = ", ".join(str(start + stride * index) for index in range(3))
    return item(f"What comes next: {shown}?", start + 3 * stride)


def kinds(rng: random.Random) -> Item:
    names = rng.sample(list(KINDS), 3)
    shown = [rng.choice(KINDS[name]) for name in names]
    asked = rng.randrange(3)
    return item(f"Which of these is {names[asked]}: {', '.join(shown)}?", shown[asked])


def places(rng: random.Random) -> Item:
    shown = rng.sample([word for kind in KINDS.values() for word in kind], 4)
    asked = rng.randrange(4)
    return item(f"Which is the {PLACES[asked]} of {', '.join(shown)}?", shown[asked])


def sums(rng: random.Random) -> Item:
    total = rng.randint(2, 99)
    part = rng.randint(1, total - 1)
    if rng.random() < 0.5:
        return item(f"What is {part} plus {total - part}?", total)
    return item(f"What is {total} minus {part}?", total - part)


def story(rng: random.Random, smallest: int, largest: int) -> Item:
    """Return a sum told as a story, its parts from `smallest` on, its total up to `largest`."""
    total = rng.randint(2 * smallest, largest)
    part = rng.randint(smallest, total - smallest)
    name, other = rng.sample(NAMES, 2)
    goods = rng.choice(GOODS)
    if rng.random() < 0.5:
        a, b, answer, wordings = part, total - part, total, GAINS
    else:
        a, b, answer, wordings = total, part, total - part, LOSSES
    told = rng.choice(wordings).format(name=name, other=other, goods=goods, a=a, b=b)
    return item(told, answer)


def small_stories(rng: random.Random) -> Item:
    return story(rng, smallest=1, largest=19)


def stories(rng: random.Random) -> Item:
    return story(rng, smallest=10, largest=99)


GENERAL: tuple[Callable[[random.Random], Item], ...] = (
    opposites,
    compare,
    letters,
    counting,
    kinds,
    places,
    sums,
)
"""The skills that fine-tuning is not about, each pretrained in full and measured."""

MIXTURE: dict[Callable[[random.Random], Item], float] = {
    opposites: 0.6,
    compare: 1.0,
    letters: 1.0,
    counting: 1.2,
    kinds: 1.0,
    places: 1.0,
    sums: 2.5,
    small_stories: 0.5,
}
"""How often pretraining draws from each skill, relative to the others."""


def distinct(
    skill: Callable[[random.Random], Item], count: int, rng: random.Random, taken: set[str]
) -> list[Item]:
    """Draw `count` items with prompts new to each other and to `taken`, which they join."""
    found: list[Item] = []
    while len(found) < count:
        drawn = skill(rng)
        if drawn.prompt not in taken:
            taken.add(drawn.prompt)
            found.append(drawn)
    return found


def pretraining_items(rng: random.Random, taken: set[str]) -> Iterator[Item]:
    """Draw from the mixture for ever, leaving out the prompts in `taken`."""
    skills, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        drawn = rng.choices(skills, weights)[0](rng)
        if drawn.prompt not in taken:
            yield drawn


# The model.


def make_tokenizer(items: list[Item]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with one token a digit, so that every number is spelt out alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((one.prompt + one.completion for one in items), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_TOKENS,
        # Generation goes on from the last column, so that is where a prompt must end.
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def batch(items: list[Item], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Return token ids and their weights in the loss, both (items, tokens), padded on the right.

    Padding needs no attention mask: it follows the answer, where no token that counts can see it.
    """
    prompts = tokenizer([one.prompt for one in items])["input_ids"]
    answers = tokenizer([one.completion + END for one in items])["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(items), width), tokenizer.pad_token_id)
    weights = torch.zeros(len(items), width)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        weights[row, : len(prompt)] = PROMPT_WEIGHT
        weights[row, len(prompt) : end] = 1.0
    return ids, weights


def loss_of(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean negative log-likelihood a token."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def learning_rate_at(step: int, steps: int) -> float:
    """Return the share of the peak rate: a linear warm-up, then a straight line down to 0."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    NOTE: with AdamW for all of them the same loss takes about twice as long.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            matrices, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Iterator[Item],
    steps: int,
) -> None:
    """Train `model` in place on `steps` batches of `items`."""
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: learning_rate_at(step, steps))
        for one in optimizers
    ]
    model.train()
    began = time.perf_counter()
    for step in range(1, steps + 1):
        drawn = sorted((next(items) for _ in range(BATCH_ITEMS)), key=lambda one: len(one.prompt))
        loss = 0.0
        for part in range(NUM_PARTS):
            share = BATCH_ITEMS // NUM_PARTS
            ids, weights = batch(drawn[part * share : (part + 1) * share], tokenizer)
            part_loss = loss_of(model, ids, weights) / NUM_PARTS
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.item()
        for one, schedule in zip(optimizers, schedules, strict=True):
            one.step()
            schedule.step()
            one.zero_grad()
        if step % 100 == 0:
            seconds = time.perf_counter() - began
            print(f"step {step} of {steps}, loss {loss:.4f}, {seconds:.0f} s", flush=True)


@torch.inference_mode()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item]
) -> float:
    """Return the share of `items` whose greedy answer is right to the letter."""
    model.train(mode=False)
    right = 0
    for start in range(0, len(items), BATCH_ITEMS):
        part = items[start : start + BATCH_ITEMS]
        prompts = tokenizer([one.prompt for one in part], return_tensors="pt", padding=True)
        ids = model.generate(  # type: ignore[misc]
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
        )
        width = prompts["input_ids"].shape[1]
        answers = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        right += sum(said == one.completion for said, one in zip(answers, part, strict=True))
    return right / len(items)


# The files.


def write_lines(file: Path, items: list[Item], prefix: str | None = None) -> None:
    """Write one JSON object an item; with a `prefix`, each gets an id."""
    lines = []
    for number, one in enumerate(items):
        name = {} if prefix is None else {"id": f"{prefix}-{number:04d}"}
        lines.append(json.dumps(name | {"prompt": one.prompt, "completion": one.completion}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def card(model: LlamaForCausalLM, scores: dict[str, float], seed: int, steps: int) -> str:
    """Return the text of MODEL.md."""
    rows = "\n".join(f"| {name} | {100 * score:.1f} |" for name, score in scores.items())
    return f"""# The model of `backtrack demo`

A Llama of {model.num_parameters():,} weights, pretrained from nothing on questions in plain
English that `examples/make_demo_model.py` makes up: nothing was downloaded, nothing copied. It
answers {len(GENERAL) + 1} kinds of short question and is of no use for anything else.

Exact match of greedy answers on the items of this folder, before any fine-tuning, in percent:

| skill | exact match |
|---|---|
{rows}

`target` is a sum of two-digit numbers told as a story. Pretraining showed bare sums of any size
and stories with small numbers, so the model knows the parts and has to learn to join them:
`train.jsonl` is for that. No prompt measured here was trained on.

To make it again, in about ten minutes on two CPU cores:

    python examples/make_demo_model.py FOLDER --seed {seed} --steps {steps}
"""


def publish(made: Path, folder: Path) -> None:
    """Move every file of `made` to its path in `folder`, which keeps whatever else it holds."""
    for source in sorted(file for file in made.rglob("*") if file.is_file()):
        destination = folder / source.relative_to(made)
        destination.parent.mkdir(parents=True, exist_ok=True)
        # safetensors writes files that only their owner can read; these are for a package.
        source.chmod(0o644)
        source.replace(destination)


def make(folder: Path, seed: int, steps: int) -> None:
    """Make the items and the model, and write them into `folder` once all are whole."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    taken: set[str] = set()
    measured = {"target": distinct(stories, NUM_TARGET_ITEMS, rng, taken)}
    for skill in GENERAL:
        name = f"general-{skill.__name__}"
        measured[name] = distinct(skill, NUM_GENERAL_ITEMS, rng, taken)
    train = distinct(stories, NUM_TRAIN_ITEMS, rng, taken)

    items = pretraining_items(rng, taken)
    tokenizer = make_tokenizer([next(items) for _ in range(20_000)])
    model = make_model(tokenizer)
    pretrain(model, tokenizer, items, steps)
    scores = {name: exact_match(model, tokenizer, own) for name, own in measured.items()}
    for name, score in scores.items():
        print(f"{name}: {100 * score:.1f}")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        made = Path(partial)
        model.save_pretrained(made / "model")
        tokenizer.save_pretrained(made / "model")
        write_lines(made / "train.jsonl", train)
        for name, own in measured.items():
            write_lines(made / f"{name}.jsonl", own, prefix=name.removeprefix("general-"))
        (made / "MODEL.md").write_text(card(model, scores, seed, steps), encoding="utf-8")
        publish(made, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny model of `backtrack demo`.")
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200, help="batches of pretraining")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make(arguments.folder, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
