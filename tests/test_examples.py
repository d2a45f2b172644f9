"""The examples run as their first lines say, on what is embedded in the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backtrack.demo import ASSETS, run_demo

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: object) -> str:
    """What a script of `examples/` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_trl_script_with_the_callback_ends_in_an_adapter(tmp_path: Path) -> None:
    printed = run_script("with_trl.py", tmp_path / "mine", 16)
    assert (tmp_path / "mine" / "export" / "adapter" / "adapter_model.safetensors").is_file()
    assert str(tmp_path / "mine" / "export" / "adapter") in printed


def test_the_embedded_data_is_what_its_script_makes(tmp_path: Path) -> None:
    run_script("make_demo_model.py", tmp_path / "made", "--steps", 2)
    names = sorted(path.name for path in ASSETS.glob("*.jsonl"))
    assert "train.jsonl" in names
    for name in names:
        assert (tmp_path / "made" / name).read_bytes() == (ASSETS / name).read_bytes(), name
    tokenizer = Path("model") / "tokenizer.json"
    assert (tmp_path / "made" / tokenizer).read_bytes() == (ASSETS / tokenizer).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_the_demo_leaves_an_overshoot_that_the_choice_mends(tmp_path: Path) -> None:
    demo = run_demo(tmp_path, is_quiet=True)
    report = demo.selection.report
    assert report["final"].target.low > report["base"].target.high, "training worked"
    assert report["final"].general.high < report["base"].general.low, "and cost general ability"
    against = {difference.to: difference for difference in demo.selection.differences}
    assert against["final"].utility.low > 0
    assert against["base"].utility.low > 0
    assert demo.report.is_file()
    assert (demo.export.folder / "adapter_model.safetensors").is_file()
    again = run_demo(tmp_path, is_quiet=True)
    assert again.run.path != demo.run.path
    assert again.selection.chosen == demo.selection.chosen, "the same recipe, the same selection"
    assert again.selection.candidates == demo.selection.candidates
