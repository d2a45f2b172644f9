"""The examples run as their first lines say, on what is embedded in the package."""

from __future__ import annotations

import json
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


SMALL = ("search.trials=0", "search.checkpoints=1", "search.alphas=[0.5]")
FEW = "search.items={selection: 16, report: 16}"
TWO = (
    "objectives=[{kind: examples, role: target, path: target.jsonl, max_new_tokens: 4}, "
    "{kind: examples, role: general, path: general-kinds.jsonl, max_new_tokens: 4}]"
)


def cells(name: str) -> str:
    """A notebook's code, cell after cell, as a script."""
    notebook = json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in found), "kept without its outputs"
    return "\n\n".join("".join(cell["source"]) for cell in found)


def test_a_run_that_trl_finished_is_chosen_from_and_the_notebook_goes_on_with_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "outputs" / "sft"
    printed = run_script("after_trl.py", folder, 4, *SMALL, FEW, TWO)
    chosen = tmp_path / "outputs" / "chosen"
    assert (chosen / "adapter_model.safetensors").is_file()
    assert str(chosen) in printed
    (tmp_path / "notebook.py").write_text(cells("operating_point.ipynb"), encoding="utf-8")
    given = {"NOTEBOOK_FOLDER": str(folder), "NOTEBOOK_OVERRIDES": "\n".join((*SMALL, FEW, TWO))}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "notebook.py")],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "chosen-in-notebook adapter" in done.stdout
    assert (tmp_path / "outputs" / "runs" / "notebook" / "report.html").is_file()


def test_two_methods_are_put_on_one_plane(tmp_path: Path) -> None:
    printed = run_script("compare_methods.py", tmp_path, 2, *SMALL, FEW, TWO)
    assert printed.index("lora: chosen") < printed.index("oft: chosen")
    assert printed.splitlines()[-1] == str(tmp_path / "two-methods" / "arena.html")
    assert (tmp_path / "two-methods" / "arena.html").is_file()


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
