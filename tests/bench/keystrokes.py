"""From a folder that TRL wrote to an exported operating point: commands and keystrokes.

python tests/bench/keystrokes.py

The folder is made by a few steps of plain TRL on the embedded model; the recipe names objectives
of the demo. What is typed is counted, the last Enter included; completion would spare more.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "backtrack select outputs/sft --recipe mine.yaml --export chosen"
OBJECTIVES = """
objectives:
  - {{kind: examples, role: target, path: {demo}/target.jsonl, max_new_tokens: 6}}
  - {{kind: examples, role: general, path: {demo}/general-sums.jsonl, max_new_tokens: 6}}
search: {{trials: 0, alphas: [0.5], items: {{selection: 16, report: 16}}}}
"""


def main() -> None:
    script = runpy.run_path(str(ROOT / "examples" / "after_trl.py"))
    with tempfile.TemporaryDirectory() as folder:
        script["train"](Path(folder) / "outputs" / "sft", 4)
        head = f"name: mine\nbase: {script['ASSETS']}/model\n"
        objectives = OBJECTIVES.format(demo=script["ASSETS"])
        (Path(folder) / "mine.yaml").write_text(head + objectives, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", *COMMAND.split()],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (Path(folder) / "chosen" / "adapter_model.safetensors").is_file()
    print(f"1 command, {len(COMMAND) + 1} keystrokes: {COMMAND}")


if __name__ == "__main__":
    main()
