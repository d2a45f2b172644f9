"""Train by other libraries, each in an environment of its own, and take over what they leave.

    python tests/real_libraries/run.py [--environments FOLDER] [LIBRARY ...]

For each library a few steps are trained on a tiny model, by the program beside this file;
then every folder that it leaves is a row of the table of `tests/bench/shapes.py`. An
environment is made once, in FOLDER (default: in TMPDIR), and takes minutes and some GB. The exit
code is 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.bench.shape_cases import Folder, Make
from tests.bench.shapes import print_table
from tests.models import make_base

HERE = Path(__file__).parent
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "trl": (),
    "llamafactory": ("llamafactory==0.9.5",),
    "swift": ("ms-swift==4.6.0",),
    "torchtune": ("torchtune==0.6.1", "torchao==0.9.0"),
    "verl": ("verl==0.9.1",),
}
"""What is installed for each library; TRL is this environment's own."""
UNUSED = ("torchvision", "torchaudio")
"""Packages that are asked for, are not needed for text, and have no build for CPUs on PyPI."""
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SECONDS = 900
"""Longest training of a library."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(tempfile.gettempdir()) / "backtrack-real-libraries"
    parser.add_argument("--environments", type=Path, default=default)
    parser.add_argument("libraries", nargs="*", default=list(REQUIREMENTS))
    asked = parser.parse_args()
    shapes: dict[str, Make] = {}
    with tempfile.TemporaryDirectory() as work:
        for library in asked.libraries:
            shapes |= trained(library, asked.environments, Path(work) / library)
        sys.exit(print_table(shapes))


def trained(library: str, environments: Path, work: Path) -> dict[str, Make]:
    """What a library leaves of each of its runs, by name.

    Raises:
        CalledProcessError: The environment cannot be made, or a training fails.
    """
    work.mkdir()
    base, data = make_plain_base(work / "base"), make_data(work / "data")
    python = python_of(library, REQUIREMENTS[library], environments)
    out = work / "out"
    program = [python, HERE / f"train_by_{library}.py", base, data, out]
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (work / "log").open("w") as log:
        subprocess.run(
            list(map(str, program)), env={**os.environ, **variables}, cwd=work, timeout=SECONDS,
            check=True, stdout=log, stderr=log,
        )  # fmt: skip
    return {
        f"{library}: {folder.name}": functools.partial(_unchanged, Folder(base, folder))
        for folder in sorted(out.iterdir())
    }


def _unchanged(shape: Folder, _work: Path) -> Folder:
    return shape


def make_plain_base(folder: Path) -> Path:
    """A tiny Llama as all of the libraries know it: no biases, no tied head, a chat template."""
    make_base(folder, tied=False)
    config = LlamaConfig.from_pretrained(folder, attention_bias=False)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def make_data(folder: Path) -> Path:
    """Sums, in each form that a trainer reads."""
    folder.mkdir()
    sums = [(f"{a} + {b} =", str(a + b), str(a + b + 1)) for a in range(4) for b in range(4)]
    turns: list[list[Any]] = [
        [[{"role": "user", "content": a}], *([{"role": "assistant", "content": t}] for t in both)]
        for a, *both in sums
    ]
    kinds = {
        "messages": [{"messages": asked + right} for asked, right, _ in turns],
        "pairs": [{"prompt": a, "chosen": right, "rejected": wrong} for a, right, wrong in turns],
        "labelled": [
            {"prompt": asked, "completion": [right, wrong][i % 2], "label": i % 2 == 0}
            for i, (asked, right, wrong) in enumerate(turns)
        ],
        "prompts": [{"prompt": asked} for asked, *_ in turns],
        "alpaca": [{"instruction": a, "input": "", "output": right} for a, right, _ in sums],
        "alpaca_pairs": [
            {"instruction": a, "input": "", "chosen": right, "rejected": wrong}
            for a, right, wrong in sums
        ],
        "swift_pairs": [
            {"messages": asked + right, "rejected_response": wrong[0]["content"]}
            for asked, right, wrong in turns
        ],
    }
    for kind, lines in kinds.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def python_of(library: str, requirements: Sequence[str], environments: Path) -> Path:
    """The interpreter of a library's environment, which is made if it is missing."""
    if not requirements:
        return Path(sys.executable)
    folder = environments / library
    python = folder / "bin" / "python"
    if not (folder / "made").is_file():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        constraints = HERE.parents[1] / "constraints.txt"
        lines = constraints.read_text().splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        subprocess.run([*pip, "install", torch, *requirements], check=True)
        subprocess.run([*pip, "uninstall", "-y", *UNUSED], check=True)
        (folder / "made").touch()
    return python


if __name__ == "__main__":
    main()
