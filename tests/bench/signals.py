"""Stop each command at random moments by signals: is the result that of an undisturbed one?

python tests/bench/signals.py 65

Each command is stopped again and again in one place, by SIGINT, SIGTERM and SIGKILL, until
it ends by itself; then its result is compared with that of the same command undisturbed. Places
are used until each command was stopped its share of times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file

import backtrack.arena.driver
import backtrack.exporter
import backtrack.selection.choice.select
import backtrack.selection.search.driver
import backtrack.train.trainers.train  # noqa: F401  # loaded once, before the processes are forked
from backtrack.cli import main as command
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
RECIPE = """\
name: mine
base: base
objectives:
  - {kind: examples, role: target, path: sums.jsonl, score: nll}
  - {kind: examples, role: general, path: words.jsonl, score: nll}
search:
  {trials: 2, checkpoints: 1, alphas: [0.25, 0.5, 0.75], sampler: random,
   items: {selection: 24, report: 24}}
"""
ARENA = """\
name: plane
base: base
seeds: [0]
data: {train: words.jsonl}
sft: {max_steps: 6, per_device_train_batch_size: 4, learning_rate: 5.0e-3}
trajectory: {every_steps: 2}
diagnose: {num_prompts: 4}
entrants:
  - {name: lora, method: {kind: lora, r: 2, target_modules: all-linear}}
  - {name: oft, method: {kind: oft, oft_block_size: 8, target_modules: all-linear}}
objectives:
  - {kind: examples, role: target, path: sums.jsonl, score: nll}
  - {kind: examples, role: general, path: words.jsonl, score: nll}
search: {trials: 0, checkpoints: 1, alphas: [0.5], items: {selection: 10, report: 10}}
"""
INCIDENTAL = {"created", "seconds", "train_seconds", "measure_seconds", "peak_bytes", "command"}


def without_times(value: Any) -> Any:
    """JSON without what differs between two runs of the same command."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in INCIDENTAL}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def read(path: Path, place: Path) -> Any:
    return without_times(json.loads(path.read_text().replace(str(place), "")))


def measured(run: Path) -> Counter[tuple[str, ...]]:
    """How often each item was measured."""
    return Counter(
        (m.setting, m.checkpoint, str(m.point), m.split, m.objective.name, item_id)
        for m in Run.open(run).measurements()
        for item_id in m.item_ids
    )


def of_choice(place: Path) -> Any:
    run = place / "runs" / "mine"
    names = ("selection.json", "sweep.json")
    return [read(run / name, place) for name in names if (run / name).exists()], measured(run)


def of_export(place: Path) -> Any:
    tensors = load_file(place / "out" / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def of_adoption(place: Path) -> Any:
    run = Run.open(place / "runs" / "taken")
    return [(entry.step, entry.sha256) for entry in run.entries()]


def of_arena(place: Path) -> Any:
    folder = place / "runs" / "plane"
    runs = [path.parent for path in sorted(folder.glob("*/manifest.json"))]
    scores = [read(run / "selection.json", place) for run in runs]
    return scores, read(folder / "arena.json", place), [measured(run) for run in runs]


COMMANDS: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
    "search": (["search", "mine", "--recipe", "recipe.yaml"], of_choice),
    "select": (["select", "mine", "--recipe", "recipe.yaml"], of_choice),
    "export": (["export", "mine", "out", "--point", "20:0.5"], of_export),
    "adopt": (["adopt", "trained", "--name", "taken", "--base", "base"], of_adoption),
    "arena": (["arena", "arena.yaml"], of_arena),
}


def start(arguments: list[str], place: Path) -> int:
    """Run a command in a forked process; return its id."""
    process = os.fork()
    if process:
        return process
    os.chdir(place)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 1
    try:
        command([*arguments, "--quiet"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001  # what a signal raised
        code = 130
    os._exit(code)


def ends(process: int) -> int | None:
    """The exit code of a process; None if it was stopped by a signal."""
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code < 0 or code in (130, 143) else code


def make_place(folder: Path) -> None:
    base = make_base(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    run = make_peft_run(folder / "runs" / "mine", base, config)
    for step in run.steps:
        shutil.copytree(run.folder(step), folder / "trained" / f"checkpoint-{step}")
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(48)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "arena.yaml").write_text(ARENA)


def drill(name: str, num_stops: int, template: Path, folder: Path, rng: random.Random) -> str:
    """Stop one command `num_stops` times or more, and compare; return what to print."""
    arguments, result_of = COMMANDS[name]
    shutil.copytree(template, folder / "undisturbed")
    begin = time.perf_counter()
    code = ends(start(arguments, folder / "undisturbed"))
    seconds = time.perf_counter() - begin
    if code != 0:
        raise RuntimeError(f"{name} ends with {code} where nobody disturbs it")
    expected = result_of(folder / "undisturbed")
    stops: Counter[str] = Counter()
    num_places = num_equal = num_twice = 0
    while stops.total() < num_stops:
        num_places += 1
        place = folder / f"place-{num_places}"
        shutil.copytree(template, place)
        while True:
            process = start(arguments, place)
            sent = min(SIGNALS, key=lambda each: stops[each.name])
            time.sleep(rng.uniform(0.05, 1.05) * seconds)
            os.kill(process, sent)
            code = ends(process)
            if code is not None:
                break
            stops[sent.name] += 1
        num_equal += code == 0 and result_of(place) == expected
        for counter in (measured(path.parent) for path in place.glob("runs/**/manifest.json")):
            num_twice += sum(number > 1 for number in counter.values())
    by_signal = ", ".join(f"{number} {name}" for name, number in sorted(stops.items()))
    return (
        f"{name}: stopped {stops.total()} times ({by_signal}), {num_equal} of {num_places} ends "
        f"equal the undisturbed one, {num_twice} items measured twice, undisturbed {seconds:.1f} s"
    )


def main(num_stops: int) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        template = Path(name) / "template"
        template.mkdir()
        make_place(template)
        for number, which in enumerate(COMMANDS):
            share = num_stops // len(COMMANDS) + (number < num_stops % len(COMMANDS))
            folder = Path(name) / which
            folder.mkdir()
            print(drill(which, share, template, folder, rng), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 65)
