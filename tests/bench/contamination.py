"""Cost of finding items in the training data: peak memory and time, streamed or held in memory.

    python tests/bench/contamination.py [EXAMPLES]

Looks 1,000 items of 80 words up in 20,000 examples of 150 to 450 words, one of 100 of which holds
an item. "Held" is the obvious code: all texts and all their runs of words as two sets. Each runs
in a process of its own; memory is what its peak adds to the imports, and time is CPU time. Both
must find the same items.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backtrack.evaluate.objectives.documents import load_records
from backtrack.evaluate.objectives.objective import Objective
from backtrack.recipe import DataSection
from backtrack.records import ObjectiveInfo
from backtrack.selection.measure.contamination import OVERLAP, RUN_WORDS, _words, find_shared

NUM_ITEMS = 1000


class Items(Objective):
    """Items of the texts of a file."""

    def __init__(self, path: Path) -> None:
        self.info = ObjectiveInfo(
            name="items", role="target", kind="examples", direction="maximize", unit="fraction",
            weight=1.0, fingerprint="",
        )  # fmt: skip
        self._texts = tuple(json.loads(path.read_text()))
        self.item_ids = tuple(f"items/{number}" for number in range(len(self._texts)))

    def texts(self) -> tuple[str, ...]:
        return self._texts

    def measure(self, model: object, item_ids: Sequence[str]) -> tuple[float, ...]:
        raise NotImplementedError


def write_data(folder: Path, num_examples: int) -> None:
    """Random words with the frequencies of a natural language (Zipf), from a fixed seed."""
    draw = random.Random(0)
    words = [f"{draw.getrandbits(36):x}"[: draw.randint(2, 9)] for _ in range(30_000)]
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, frequencies, k=draw.randint(low, high)))

    items = [text(80, 80) for _ in range(NUM_ITEMS)]
    (folder / "items.json").write_text(json.dumps(items))
    with (folder / "train.jsonl").open("w") as file:
        for number in range(num_examples):
            shared = items[number // 100 % NUM_ITEMS] if number % 100 == 0 else ""
            row = {"prompt": f"{text(30, 90)} {shared}", "completion": text(120, 360)}
            file.write(json.dumps(row) + "\n")


def streamed(folder: Path) -> list[str]:
    data = DataSection(train=str(folder / "train.jsonl"))
    return list(find_shared(data, [Items(folder / "items.json")]).items["items"])


def held(folder: Path) -> list[str]:
    """Find shared items with all training text in memory."""
    rows = load_records(str(folder / "train.jsonl"), None, "train")
    prompts = [row["prompt"] for row in rows]
    texts = [f"{row['prompt']} {row['completion']}" for row in rows]
    words = [_words(text) for text in prompts + texts]
    wholes = {" ".join(each) for each in words}
    runs = {run for each in words for run in _runs(each)}
    items = Items(folder / "items.json")

    def is_shared(text: str) -> bool:
        own = list(_runs(_words(text)))
        is_equal = " ".join(_words(text)) in wholes
        return is_equal or sum(run in runs for run in own) >= OVERLAP * len(own)

    pairs = zip(items.item_ids, items.texts(), strict=True)
    return [item_id for item_id, text in pairs if is_shared(text)]


def _runs(words: Sequence[str]) -> Iterator[int]:
    for first in range(len(words) - RUN_WORDS + 1):
        yield hash(tuple(words[first : first + RUN_WORDS]))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path, form: str) -> None:
    """Print peak memory over the imports, CPU seconds and the items found, as JSON."""
    forms: dict[str, Callable[[Path], list[str]]] = {"streamed": streamed, "held": held}
    before, begun = _peak_bytes(), time.process_time()
    found = forms[form](folder)
    print(json.dumps([_peak_bytes() - before, time.process_time() - begun, found]))


def main(num_examples: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), num_examples)
        figures = {}
        for form in ("held", "streamed"):
            command = [sys.executable, __file__, form, name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[form] = json.loads(output)
            num_bytes, seconds, found = figures[form]
            print(
                f"{form:9} {num_bytes / 1e6:8.1f} MB {seconds:6.2f} s "
                f"{seconds / num_examples * 1e6:5.0f} us an example, {len(found)} items shared"
            )
    held_bytes, held_seconds, held_items = figures["held"]
    streamed_bytes, streamed_seconds, streamed_items = figures["streamed"]
    if held_items != streamed_items:
        sys.exit("streamed and held do not find the same items")
    print(
        f"streamed / held: memory {streamed_bytes / held_bytes:.3f}, "
        f"time {streamed_seconds / held_seconds:.2f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("held", "streamed"):
        measure(Path(sys.argv[2]), sys.argv[1])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 20_000)
