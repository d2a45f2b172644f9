"""The examples run as their first lines say, on what is embedded in the package."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from backtrack.demo import ASSETS, run_demo
from backtrack.run.directory import Run

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: object) -> str:
    """What a script of `examples/` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
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


@pytest.mark.filterwarnings("ignore")
def test_a_loop_of_ones_own_with_the_saver_ends_in_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "with_a_loop.py"))["main"]
    main(tmp_path / "mine", 16, *SMALL, FEW, TWO)
    assert Run.open(tmp_path / "mine").steps == tuple(range(2, 17, 2))
    written = tmp_path / "mine" / "export"
    assert list(written.rglob("*.safetensors"))
    assert str(written) in capsys.readouterr().out


def cells(name: str) -> str:
    """A notebook's code, cell after cell, as a script."""
    notebook = json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in found), "kept without its outputs"
    return "\n\n".join("".join(cell["source"]) for cell in found)


@pytest.mark.slow
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


@pytest.mark.slow
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


@dataclass
class Printed:
    """A demo that ran from an installation which has since been moved, as by a reinstallation."""

    run: Path
    text: str
    package: Path
    """The folder where the package is now."""

    def call(self, *arguments: str, cwd: Path) -> str:
        """What a command of the moved installation prints."""
        return called(self.package, *arguments, cwd=cwd)


def called(package: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "backtrack", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(package), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


def installed(folder: Path) -> Path:
    """A copy of the package and its recipes."""
    for name in ("backtrack", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    place = tmp_path_factory.mktemp("demo")
    first = installed(place / "first")
    text = called(first, "demo", "my runs", cwd=place)
    return Printed(place / "my runs" / "demo", text, first.rename(place / "second"))


TINY = """
name: tiny
base: {model: "embedded:demo/model", dtype: float32}
method: {kind: lora, r: 2}
data: {train: "embedded:demo/train.jsonl"}
sft: {max_steps: 1, per_device_train_batch_size: 2}
objectives:
  - {kind: examples, role: target, path: "embedded:demo/target.jsonl", score: nll}
  - {kind: examples, role: general, path: "embedded:demo/general-kinds.jsonl", score: nll}
search: {trials: 0, checkpoints: 1, alphas: [0.5], items: {selection: 8, report: 8}}
"""


def test_a_run_of_the_embedded_base_goes_on_when_the_package_is_installed_elsewhere(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    first = installed(tmp_path / "first")
    called(first, "train", "tiny.yaml", cwd=tmp_path)
    run = tmp_path / "runs" / "tiny"
    for name in ("manifest.json", "recipe.resolved.json"):
        text = (run / name).read_text(encoding="utf-8")
        assert str(first) not in text
        assert '"embedded:demo/model"' in text
    second = first.rename(tmp_path / "second")
    called(second, "select", "--weight", "0.8", cwd=tmp_path)
    (row,) = json.loads(called(second, "runs", "--json", cwd=tmp_path))
    assert (row["state"], row["base"]) == ("selected", "embedded:demo/model")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_demo_leaves_an_overshoot_that_the_choice_mends(
    printed: Printed, tmp_path: Path
) -> None:
    demo = run_demo(tmp_path, is_quiet=True)
    report = demo.selection.report
    assert report["final"].target.low > report["base"].target.high, "training worked"
    assert report["final"].general.high < report["base"].general.low, "and cost general ability"
    against = {difference.to: difference for difference in demo.selection.differences}
    assert against["final"].utility.low > 0
    assert against["base"].utility.low > 0
    assert demo.report.is_file()
    assert (demo.export.folder / "adapter_model.safetensors").is_file()
    first = Run.open(printed.run).selection()
    assert first is not None
    assert first.chosen == demo.selection.chosen, "the same recipe, the same selection"
    assert first.candidates == demo.selection.candidates


def suggestions(text: str, cwd: Path) -> list[list[str]]:
    """The arguments of the commands that the demo suggests; names in capitals are filled in."""
    steps = sorted((cwd / "my runs" / "demo" / "trajectory").glob("step-*"))[-2:]
    for step in steps:
        target = cwd / "outputs" / "sft" / f"checkpoint-{int(step.name[5:])}"
        shutil.copytree(step, target, dirs_exist_ok=True)
    (cwd / "tiny.yaml").write_text(TINY, encoding="utf-8")
    given = {"BASE": "embedded:demo/model", "RECIPE": "tiny.yaml"}
    lines = [line.strip() for line in text.splitlines() if line.startswith("  backtrack ")]
    return [[given.get(part, part) for part in shlex.split(line)[1:]] for line in lines]


@pytest.mark.slow
def test_what_the_demo_suggests_works_in_any_order_after_a_reinstallation(
    printed: Printed, tmp_path: Path
) -> None:
    commands = suggestions(printed.text, printed.run.parents[1])
    assert len(commands) == 5
    assert sum(command[:2] == ["select", "my runs/demo"] for command in commands) == 2
    whole = tmp_path / "whole"
    shutil.copytree(printed.run.parents[1], whole, ignore=shutil.ignore_patterns("second"))
    chosen = []
    for number, order in enumerate((commands, commands[::-1])):
        cwd = shutil.copytree(whole, tmp_path / f"order-{number}")
        found = {}
        for command in order:
            printed.call(*command, cwd=cwd)
            if command[1] == "my runs/demo":
                selection = Run.open(cwd / "my runs" / "demo").selection()
                assert selection is not None
                found[tuple(command)] = (selection.chosen, selection.candidates)
        chosen.append(found)
    assert len(chosen[0]) == 2
    assert chosen[0] == chosen[1]
