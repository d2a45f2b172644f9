"""From folders that other programs wrote to a result of ours: commands and keystrokes.

python tests/bench/keystrokes.py

TRL's folder is made by a few steps on the embedded model, and its recipe names objectives of the
demo; lm-eval's two folders are of random models, written by lm-eval itself. What is typed is
counted, the last Enter included; completion would spare more.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.gate.conftest import make_evaluated

ROOT = Path(__file__).resolve().parents[2]
SELECT = "backtrack select outputs/sft --recipe mine.yaml --export chosen"
GATE = "backtrack gate results/new --against results/old --max-drop sums:acc=5"
OBJECTIVES = """
objectives:
  - {{kind: examples, role: target, path: {demo}/target.jsonl, max_new_tokens: 6}}
  - {{kind: examples, role: general, path: {demo}/general-sums.jsonl, max_new_tokens: 6}}
search: {{trials: 0, alphas: [0.5], items: {{selection: 16, report: 16}}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        gate(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        select(Path(folder))


def select(folder: Path) -> None:
    """From a folder of TRL's to an exported operating point."""
    script = runpy.run_path(str(ROOT / "examples" / "after_trl.py"))
    script["train"](folder / "outputs" / "sft", 4)
    head = f"name: mine\nbase: {script['ASSETS']}/model\n"
    objectives = OBJECTIVES.format(demo=script["ASSETS"])
    (folder / "mine.yaml").write_text(head + objectives, encoding="utf-8")
    typed(SELECT, folder, codes=(0,))
    assert (folder / "chosen" / "adapter_model.safetensors").is_file()


def gate(folder: Path) -> None:
    """From two results folders of lm-eval's to a verdict."""
    found = make_evaluated(folder)
    (folder / "results").mkdir()
    found.candidate.rename(folder / "results" / "new")
    found.incumbent.rename(folder / "results" / "old")
    print(typed(GATE, folder, codes=(0, 1, 3)))


def typed(command: str, folder: Path, *, codes: tuple[int, ...]) -> str:
    """Run a command in a folder; print its keystrokes and return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode in codes, done.stderr
    print(f"1 command, {len(command) + 1} keystrokes: {command}")
    return done.stdout


if __name__ == "__main__":
    main()
