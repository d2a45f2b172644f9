"""The command line as a user meets it: exit codes, one clear error each, JSON that parses."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from peft import LoraConfig, PromptTuningConfig
from typer.core import TyperGroup

from backtrack import __version__, cli
from backtrack.cli.search import parse_budget
from backtrack.cli.select import add_to_recipe, parse_bounds
from backtrack.errors import UsageError
from backtrack.point import Point
from backtrack.recipe import Recipe, loading
from backtrack.records.selection import Constraints
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from backtrack.selection.search import driver as searching
from tests.commands import backtrack, hear_interrupts
from tests.models import make_base, make_peft_run
from tests.selection import fakes

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("study_in_memory"),
]


def started(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "backtrack", *map(str, arguments)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_interrupts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a base, a run of it, and a recipe of losses on two small files."""
    folder = tmp_path_factory.mktemp("cli")
    base = make_base(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    make_peft_run(folder / "runs" / "mine", base, config)
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(24)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(
        "name: mine\nbase: base\n"
        "objectives:\n"
        "  - {kind: examples, role: target, path: sums.jsonl, score: nll}\n"
        "  - {kind: examples, role: general, path: words.jsonl, score: nll}\n"
        "search: {trials: 1, checkpoints: 1, alphas: [0.5], items: {selection: 10, report: 10}}\n"
    )
    return folder


def test_select_with_nothing_else_works_in_a_folder_that_has_a_run(place: Path) -> None:
    first = backtrack("select", "--recipe", "recipe.yaml", "--weight", "0.6", cwd=place)
    assert first.returncode == 0, first.stderr
    assert (place / "runs" / "mine" / "report.html").is_file()
    measured = len(Run.open(place / "runs" / "mine").measurements())
    again = backtrack("select", "--weight", "0.6", "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    selection = json.loads(again.stdout)
    assert selection["weight"] == 0.6
    assert set(selection["report"]) == {"base", "chosen", "final"}
    assert len(Run.open(place / "runs" / "mine").measurements()) == measured
    drawn = backtrack("report", "mine", "--json", cwd=place)
    assert Path(place / json.loads(drawn.stdout)["report"]).is_file()


def test_a_recipe_of_choosing_and_keys_that_were_set_are_kept_and_shown(place: Path) -> None:
    measured = shutil.ignore_patterns("measurements.jsonl", "*.db", "recipe.*", "se*.json*")
    shutil.copytree(place / "runs" / "mine", place / "set", ignore=measured)
    setting = ["--set", "search.alphas=[0.25]", "--set", "search.trials=0"]
    done = backtrack("select", "set", "--recipe", "recipe.yaml", *setting, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    selection = json.loads(done.stdout)
    assert {c["point"]["alpha"] for c in selection["candidates"]} >= {0, 0.25, 1}
    changes = ["--recipe recipe.yaml", "--set search.alphas=[0.25]", "--set search.trials=0"]
    assert selection["changes"] == changes
    assert "search.alphas=[0.25]" in (place / "set" / "report.html").read_text()
    again = backtrack("select", "set", "--set", "search.trials=1", "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["changes"] == [*changes[:2], "--set search.trials=1"]
    assert len(found["candidates"]) == len(selection["candidates"]) + 1
    shown = backtrack("runs", "set", "--settings", cwd=place)
    assert "set is chosen by --recipe recipe.yaml, --set search.alphas=[0.25]" in shown.stdout
    listed = json.loads(backtrack("runs", "set", "--settings", "--json", cwd=place).stdout)
    assert [(row["objectives"], row["replaced"]) for row in listed] == [("sums, words", 0)]
    assert backtrack("search", "set", "--seed", 5, cwd=place).returncode == 0
    listed = json.loads(backtrack("runs", "set", "--settings", "--json", cwd=place).stdout)
    assert [row["changed"] for row in listed] == ["seed, items", ""]
    wrong = backtrack("select", "set", "--set", "search.trails=1", cwd=place)
    assert wrong.returncode == 2
    assert "trails" in wrong.stderr


def test_a_chosen_point_exported_in_the_other_form_is_measured_again(place: Path) -> None:
    chosen = backtrack("select", "--recipe", "recipe.yaml", "--json", cwd=place)
    assert chosen.returncode == 0, chosen.stderr
    done = backtrack("export", "mine", "merged", "--as", "merged", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "measured again" in done.stdout
    assert "Measured again" in (place / "merged" / "README.md").read_text()
    found = [m for m in Run.open(place / "runs" / "mine").measurements() if m.form == "merged"]
    assert {m.objective.name for m in found} == {"sums", "words"}
    again = backtrack("select", "mine", "--json", cwd=place)
    assert json.loads(again.stdout)["form"] == "attached"


def test_export_and_runs_speak_json(place: Path) -> None:
    done = backtrack("export", "mine", "out", "--point", "10:0.5", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "folder": "out",
        "form": "adapter",
        "point": "step 10 alpha 0.5",
    }
    assert (place / "out" / "adapter_model.safetensors").is_file()
    assert list(json.loads(backtrack("runs", "--json", cwd=place).stdout)) != []


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints where nothing heavy is needed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_runs_are_listed_with_what_each_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fakes.make_run(tmp_path / "runs" / "searched")
    fakes.make_run(tmp_path / "runs" / "trained")
    fakes.make_run(tmp_path / "runs" / "empty", steps=())
    target, _ = fakes.pair()
    run.record(fakes.measured(target, Point.base(), target.item_ids[:4]))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
    rows = {row["run"]: row for row in json.loads(in_process(capsys, "runs", "--json"))}
    states = {"searched": "measured", "trained": "trained", "empty": "empty", "broken": "damaged"}
    assert {name: row["state"] for name, row in rows.items()} == states
    assert (rows["searched"]["steps"], rows["searched"]["points"]) == (4, 1)
    with searching.search_lock(run):
        rows = {row["run"]: row for row in json.loads(in_process(capsys, "runs", "--json"))}
    assert rows["searched"]["state"] == "searching"
    assert set(in_process(capsys, "runs", "-q").split()) == set(states)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("manifest.json", b"null", "got None"),
        ("manifest.json", b"[" * 3000, "it is nested too deeply"),
        ("recipe.resolved.json", b'{"seed": ' + b"1" * 5000 + b"}", "has too many digits"),
        ("selection.json", b'{"created"', "it ends inside an object"),
        ("measurements.jsonl", b"3\n", "line 1 is damaged"),
        ("trajectory/index.jsonl", None, "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_run_is_listed_with_its_cause_and_the_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, content: bytes | None, cause: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    fakes.make_run(tmp_path / "runs" / "whole")
    path = fakes.make_run(tmp_path / "runs" / "broken").path / name
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    rows = {row["run"]: row for row in json.loads(in_process(capsys, "runs", "--json"))}
    assert {run: row["state"] for run, row in rows.items()} == {
        "whole": "trained",
        "broken": "damaged",
    }
    assert cause in rows["broken"]["reason"]
    listed = in_process(capsys, "runs")
    assert f"broken is damaged: {rows['broken']['reason']}" in listed
    assert re.search(r"whole +trained", listed)


def test_commands_count_the_damaged_lines_of_the_measurements(place: Path, tmp_path: Path) -> None:
    chosen = backtrack("select", "--recipe", "recipe.yaml", "--json", cwd=place)
    assert chosen.returncode == 0, chosen.stderr
    lines = (place / "runs" / "mine" / "measurements.jsonl").read_bytes().split(b"\n")
    damaged = b"\n".join([lines[0], lines[1][:50], *lines[2:]])
    killed = lines[1][:50]  # as a killed process leaves the end
    # Under a name each: what is damaged is said once in a process.
    for i, (command, tail) in enumerate([("runs", b""), ("report", b""), ("runs", killed)]):
        run = tmp_path / str(i) / "runs" / f"copy-{i}"
        shutil.copytree(place / "runs" / "mine", run)
        (run / "measurements.jsonl").write_bytes(damaged + tail)
        done = backtrack(command, "--json", cwd=tmp_path / str(i))
        assert (done.returncode, bool(json.loads(done.stdout))) == (0, True), done.stderr
        assert done.stderr.count("measurements.jsonl, line 2 is truncated or damaged") == 1
        assert done.stderr.count("damaged") == 2, "only line 2 is said"
        assert "1 damaged line was skipped" in done.stderr


def test_verbose_logs_to_standard_error_and_leaves_json_alone(place: Path) -> None:
    quiet = backtrack("runs", "--json", cwd=place)
    assert quiet.stderr == ""
    for arguments, level in ((["-v"], "INFO"), (["--verbose"], "INFO"), (["-vv"], "INFO")):
        done = backtrack("runs", "--json", *arguments, cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(quiet.stdout)
        said = rf"^\d\d:\d\d:\d\d {level} backtrack\.run\.directory: opened runs/mine"
        assert re.search(said, done.stderr, re.MULTILINE), done.stderr
        assert ("DEBUG" in done.stderr) == (arguments == ["-vv"])
    shown = backtrack("recipes", "check", "recipe.yaml", "-v", cwd=place)
    assert re.search(r"INFO backtrack\.recipe\.loading: loaded recipe recipe\.yaml", shown.stderr)


def test_libraries_leave_standard_output_to_results() -> None:
    program = (
        "import logging; from backtrack.cli.verbosity import configure_logging\n"
        "configure_logging(0)\n"
        "import deepspeed\n"
        "logging.getLogger('DeepSpeed').warning('no accelerator')\n"
        "logging.getLogger('DeepSpeed').error('no memory')\n"
        "configure_logging(1)\n"
        "import bitsandbytes\n"
        "logging.getLogger('bitsandbytes.backends').warning('no kernels')\n"
        "logging.getLogger('DeepSpeed').warning('no room')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    said = [line.rpartition(": ")[2] for line in done.stderr.splitlines()]
    assert said == ["no memory", "no room"]


def test_a_variable_sets_the_level_of_logging_and_a_wrong_one_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKTRACK_LOG", "debug")
    done = backtrack("runs", "--json", cwd=place)
    assert "DEBUG" in done.stderr
    assert json.loads(done.stdout)
    monkeypatch.setenv("BACKTRACK_LOG", "warning")
    assert backtrack("runs", cwd=place).stderr == ""
    monkeypatch.setenv("BACKTRACK_LOG", "loud")
    wrong = backtrack("runs", cwd=place)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "debug, info, warning" in wrong.stderr


def test_the_doctor_says_what_there_is_and_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backtrack.doctor.EXTRAS", {"more": ("no_such_module", "more")})
    found = {each["topic"]: each for each in json.loads(in_process(capsys, "doctor", "--json"))}
    assert found["torch"]["text"] == torch.__version__
    assert found["[more]"]["sign"] == "missing"
    assert found["[more]"]["advice"] == "pip install 'backtrack-llm[more]'"
    assert re.search(r"[GT]B of memory", found["machine"]["text"])
    assert "[more]" in in_process(capsys, "doctor", "--quiet")


def test_an_error_nobody_expected_ends_in_the_same_voice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr("backtrack.doctor.examine", break_down)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    last = said[said.rindex("error: ") :]
    assert last.startswith("error: unexpected RuntimeError: CUDA out of memory")
    assert "is kept" in last.replace("\n", " ")


@pytest.mark.slow
def test_a_search_says_what_it_will_cost_and_how_far_it_is(place: Path) -> None:
    make_peft_run(
        place / "shown",
        place / "base",
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2),
    )
    done = backtrack("search", "shown", "--recipe", "recipe.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert re.search(r"points, at most \d+ items to score", done.stderr), done.stderr
    last = re.findall(r"measuring: (\d+) of (\d+)", done.stderr)[-1]
    assert int(last[0]) <= int(last[1])


def test_an_export_of_a_retrained_checkpoint_has_no_scores_of_the_earlier_one(place: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    run = make_peft_run(place / "again", place / "base", config)
    chosen = backtrack("select", "again", "--recipe", "recipe.yaml", "--json", cwd=place)
    assert chosen.returncode == 0, chosen.stderr
    other = make_peft_run(place / "other", place / "base", config, steps=(30, 20))

    def retrain(folder: Path) -> None:
        shutil.copytree(other.folder(20), folder, dirs_exist_ok=True)

    write_checkpoint(run, 20, retrain)
    done = backtrack("export", "again", "stale", "--point", "20:0.5", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "step 20 was replaced after the point was chosen" in done.stderr
    assert "words" not in (place / "stale" / "README.md").read_text()
    listed = json.loads(backtrack("runs", ".", "--json", cwd=place).stdout)
    assert [row["state"] for row in listed if row["run"] == "again"] == ["outdated"]


WRONG = {
    "weight": (["select", "nothing-here", "--weight", "1.5"], 2, "'--weight'"),
    "bound": (["select", "nothing-here", "--keep-gain", "7"], 2, "'--keep-gain'"),
    "drop": (["gate", "a", "--against", "b", "--max-target-drop", "-1"], 2, "'--max-target"),
    "choices": (["select", "-w", ".1", "-w", ".2", "--export", "x"], 2, "give one --weight"),
    "folder": (["export", "mine", "a", "-o", "b"], 2, "export [RUN] -o DIR"),
    "option": (["select", "--wight", "0.5"], 2, "--weight"),
    "run": (["select", "nothing-here"], 1, "nothing-here"),
    "point": (["export", "mine", "x", "--point", "here"], 2, "STEP:ALPHA"),
    "step": (["export", "mine", "x", "--point", "11:0.5"], 2, "10, 20"),
    "recipe": (["train", "nothing.yaml"], 2, "no such file"),
    "dtype": (["select", "mine", "--dtype", "float16"], 2, "adopt its checkpoints with --dtype"),
    "set": (["demo", "--set", "search.trails=1"], 2, "trails"),
    "unreachable": (["select", "--min-target", "1000"], 1, "min"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_use_is_one_clear_error(name: str, place: Path) -> None:
    arguments, code, expected = WRONG[name]
    if name == "unreachable":
        arguments = [*arguments, "--recipe", "recipe.yaml"]
    done = backtrack(*arguments, cwd=place)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_run_without_objectives_says_how_to_give_some(place: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    make_peft_run(place / "bare", place / "base", config)
    done = backtrack("select", "bare", cwd=place)
    assert done.returncode == 2
    assert "--recipe" in done.stderr


def test_an_empty_folder_and_a_prompt_adapter_are_refused(place: Path) -> None:
    (place / "empty").mkdir()
    done = backtrack("select", "empty", cwd=place)
    assert (done.returncode, "checkpoint-" in done.stderr) == (1, True)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    make_peft_run(place / "prompts", place / "base", config)
    done = backtrack("select", "prompts", "--recipe", "recipe.yaml", cwd=place)
    assert (done.returncode, "PROMPT_TUNING" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_an_unknown_lm_eval_task_names_the_nearest(place: Path) -> None:
    text = (
        (place / "recipe.yaml")
        .read_text()
        .replace(
            "{kind: examples, role: target, path: sums.jsonl, score: nll}",
            "{kind: lm_eval, role: target, task: gsm8kk, metric: exact_match}",
        )
    )
    (place / "unknown.yaml").write_text(text)
    done = backtrack("select", "--recipe", "unknown.yaml", cwd=place)
    assert (done.returncode, "gsm8k" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_a_recipe_with_several_mistakes_lists_them_all(place: Path) -> None:
    (place / "bad.yaml").write_text(
        "nam: x\nbase: {model: base, dtipe: auto}\nmethod: {kind: lora, lora_alhpa: 8}\n"
        "sft: {learning_rat: 1}\nselect: {weight: 1.4}\nsearch: {trails: 3}\n"
    )
    done = backtrack("recipes", "check", "bad.yaml", cwd=place)
    assert done.returncode == 2
    for expected in ("'name'", "'dtype'", "'lora_alpha'", "'learning_rate'", "1.4", "'trials'"):
        assert expected in done.stderr, done.stderr


def test_select_on_a_folder_of_checkpoints_adopts_it_on_the_fly(place: Path) -> None:
    for step in (10, 20):
        source = place / "runs" / "mine" / "trajectory" / f"step-{step:08d}"
        shutil.copytree(source, place / "outputs" / "sft" / f"checkpoint-{step}")
    done = backtrack(
        "select",
        "outputs/sft",
        "--recipe",
        "recipe.yaml",
        "--dtype",
        "bfloat16",
        "--export",
        "chosen",
        "--json",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["final"] == {"step": 20, "alpha": 1.0, "profile": "uniform"}
    assert (place / "chosen" / "adapter_config.json").is_file()
    run = Run.open(place / "runs" / "sft")
    assert (run.manifest.source, run.base.dtype) == (str(place / "outputs" / "sft"), "bfloat16")


def test_rebase_records_where_the_base_is_and_refuses_another(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    shutil.copytree(place / "runs" / "mine", run)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["model"], manifest["folders"] = "../../gone", []
    (run / "manifest.json").write_text(json.dumps(manifest))
    base, other = make_base(tmp_path / "new place"), make_base(tmp_path / "other", seed=1)
    failed = backtrack("export", "out", "--point", "20:0.5", cwd=tmp_path)
    assert failed.returncode == 1
    advised = re.search(r"`backtrack (rebase .*) --base NAME-OR-FOLDER`", failed.stderr)
    assert advised is not None, failed.stderr
    before = (run / "manifest.json").read_bytes()
    refused = backtrack(*shlex.split(advised[1]), "--base", other, cwd=tmp_path)
    assert refused.returncode == 1
    assert "tensors differ" in refused.stderr
    assert (run / "manifest.json").read_bytes() == before
    done = backtrack(*shlex.split(advised[1]), "--base", base, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"run": "runs/mine", "base": str(base)}
    assert backtrack("export", "out", "--point", "20:0.5", cwd=tmp_path).returncode == 0
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base)


def test_a_base_given_for_a_run_is_checked_and_recorded(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    shutil.copytree(place / "runs" / "mine", run)
    base, other = make_base(tmp_path / "new place"), make_base(tmp_path / "other", seed=1)
    arguments = ("export", "runs/mine", "out", "--point", "20:0.5", "--base")
    refused = backtrack(*arguments, other, cwd=tmp_path)
    assert refused.returncode == 1
    assert "tensors differ" in refused.stderr
    done = backtrack(*arguments, base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all tensors are those it was trained on" in done.stderr
    assert Run.open(run).base.model == str(base)


@pytest.mark.slow
def test_ctrl_c_during_training_leaves_a_run_that_resumes(place: Path) -> None:
    # Steps of a tenth of a second: time for the signal while a busy disk takes the checkpoints.
    rows = [{"prompt": f"sums {i}:" * 8, "completion": f" {i * 3 % 7}"} for i in range(256)]
    (place / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "long.yaml").write_text(
        "name: long\nbase: base\nmethod: {kind: lora, r: 2}\ndata: {train: train.jsonl}\n"
        "sft: {max_steps: 60, per_device_train_batch_size: 256}\ntrajectory: {every_steps: 5}\n"
    )
    index = place / "runs" / "long" / "trajectory" / "index.jsonl"
    with started("train", "long.yaml", cwd=place) as training:
        while training.poll() is None and not (index.is_file() and index.read_text()):
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        _, said = training.communicate(timeout=120)
    assert training.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    done = backtrack("train", "long.yaml", "--resume", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == list(range(5, 61, 5))


def test_bounds_of_the_command_line_are_added_to_the_recipes(capsys: pytest.CaptureFixture[str]):
    bounds = {"max_general_drop": 2.0, "objectives": {"nq": {"max_drop": 1.0}}}
    written = Recipe.model_validate({"name": "a", "base": "b", "select": bounds})
    recipe = Recipe.model_validate_json(written.model_dump_json())  # as a run keeps it
    more = Constraints.model_validate({"min_target": 30, "objectives": {"nq": {"worst": 20}}})
    added = add_to_recipe(more, recipe)
    assert added == Constraints.model_validate(
        {**bounds, "min_target": 30, "objectives": {"nq": {"max_drop": 1.0, "worst": 20}}}
    )
    assert capsys.readouterr().err == ""
    replaced = add_to_recipe(Constraints(max_general_drop=1.0), recipe)
    assert replaced == Constraints.model_validate({**bounds, "max_general_drop": 1.0})
    said = " ".join(capsys.readouterr().err.split())
    assert "max_general_drop 1 on the command line replaces the recipe's 2" in said


def test_a_bound_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-drop is given twice for nq"):
        parse_bounds(["nq=1", "nq=5"], None)


def test_points_have_the_same_names_in_every_command(place: Path) -> None:
    done = backtrack("export", "mine", "by-name", "--point", "base", "--json", cwd=place)
    assert json.loads(done.stdout)["point"] == "base", done.stderr
    done = backtrack("export", "mine", "-o", "by-alpha", "--point", "0.5", "--json", cwd=place)
    last = Run.open(place / "runs" / "mine").steps[-1]
    assert json.loads(done.stdout)["point"] == f"step {last} alpha 0.5", done.stderr
    wrong = backtrack("export", "mine", "wrong", "--point", "nonsense", cwd=place)
    assert "'nonsense' is not a point. Write base, final" in wrong.stderr


def test_a_gate_leaves_what_the_run_is_chosen_by(place: Path) -> None:
    done = backtrack("search", "--recipe", "recipe.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    file = place / "runs" / "mine" / "recipe.choosing.json"
    before = file.read_text(encoding="utf-8")
    done = backtrack("gate", "runs/mine", "--against", "runs/mine@base", "--max-general-drop", 50,
                     "--limit", 8, "--json", cwd=place)  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert file.read_text(encoding="utf-8") == before


def test_budgets_and_bounds_on_objectives_are_read_or_refused():
    assert parse_budget(["items=5000", "tokens=2e6"]).model_dump() == {
        "items": 5000,
        "tokens": 2_000_000,
        "minutes": None,
    }
    assert parse_bounds(["nq=2"], ["nq=30", "bbh=0.5"]) == {
        "nq": {"max_drop": 2.0, "worst": 30.0},
        "bbh": {"worst": 0.5},
    }
    for wrong in (["items"], ["items=many"], ["hours=2"], ["items=-1"]):
        with pytest.raises(UsageError, match="items=5000, tokens=2e6 or minutes=30"):
            parse_budget(wrong)
    with pytest.raises(UsageError, match="write NAME=NUMBER"):
        parse_bounds(None, ["nq"])


def test_the_neighbours_options_set_keys_of_the_recipe_and_are_kept(place: Path) -> None:
    ignored = shutil.ignore_patterns("measurements.jsonl", "*.db", "recipe.*", "se*.json*")
    shutil.copytree(place / "runs" / "mine", place / "short", ignore=ignored)
    options = ["--device", "cpu", "--batch-size", 3, "--seed", 7, "--limit", 9]
    done = backtrack("search", "short", "--recipe", "recipe.yaml", *options, cwd=place)
    assert done.returncode == 0, done.stderr
    recipe = Run.open(place / "short").choosing.recipe  # type: ignore[union-attr]
    assert (recipe.placement.device, recipe.search.batch_size, recipe.search.seed) == ("cpu", 3, 7)
    assert (recipe.search.items.selection, recipe.search.items.report) == (5, 4)
    kept = backtrack("runs", "short", "--settings", cwd=place).stdout
    assert "--set search.seed=7" in kept


def every_command() -> list[str]:
    """The words that name each command."""
    top = typer.main.get_group(cli.app).commands
    groups = {n: each.commands for n, each in top.items() if isinstance(each, TyperGroup)}
    return ["", *top, *(f"{name} {inner}" for name in groups for inner in groups[name])]


@pytest.mark.parametrize("name", every_command())
def test_the_help_shows_a_value_only_where_one_is_to_be_written(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = in_process(capsys, *name.split(), "--help")
    assert "--help" in said
    assert not re.search("<bool>|range>", said)


def test_a_recipe_is_read_from_standard_input_relative_to_the_working_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (place / "recipe.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.chdir(place)
    loading._standard_input.cache_clear()
    found = json.loads(in_process(capsys, "recipes", "check", "-", "--json"))
    assert found["base"]["model"] == str(place / "base")
    assert in_process(capsys, "recipes", "show", "-") == text
    said = in_process(capsys, "recipes", "check", "-")
    assert "none" in said
    assert "not known" not in said
    loading._standard_input.cache_clear()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "--version") == f"backtrack {__version__}\n"


def test_the_earlier_name_of_a_bound_is_read() -> None:
    written = Constraints.model_validate_json('{"objectives": {"nq": {"limit": 20}}}')
    assert written == Constraints.model_validate({"objectives": {"nq": {"worst": 20}}})
    assert json.loads(written.model_dump_json())["objectives"]["nq"]["worst"] == 20


def test_the_doctor_of_a_recipe_checks_what_it_needs(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    text = (place / "recipe.yaml").read_text(encoding="utf-8")
    (place / "needs.yaml").write_text(
        text.replace("base: base", "base: {model: base, quantization: 4bit}")
        + "cluster: {actors: 2}\n"
    )

    def extras(*recipe: str) -> set[str]:
        found = json.loads(in_process(capsys, "doctor", *recipe, "--json"))
        return {each["topic"] for each in found if each["topic"].startswith(("[", "vllm"))}

    assert extras("recipe.yaml") == set()
    assert extras("needs.yaml") == {"[quantized]", "[ray]"}
    assert extras() >= {"[quantized]", "[ray]", "[ifeval]", "vllm"}
