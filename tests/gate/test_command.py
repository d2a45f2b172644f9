"""The command `gate`: exit codes, tables and files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from backtrack import cli
from backtrack.gate import gate, output
from backtrack.records.gate import GateBound, GateResult

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("study_in_memory"),
]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys) -> Command:
    """Run the command in this process; its exit code and what it printed."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["gate", *map(str, arguments)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def results(make_side) -> dict[str, GateResult]:
    """An answer of each outcome."""
    old = {"a": [1.0, 0.0] * 200, "b|c": [1.0, 0.0] * 20}
    new = {"a": [0.0] * 400, "b|c": [1.0, 0.0] * 20}
    sides = make_side("new<&>", new), make_side("old", old)
    bounds = {
        "passes": [GateBound(kind="max_drop", name="a", number=90)],
        "fails": [GateBound(kind="max_drop", name=n, number=2) for n in ("a", "b|c")],
        "undecided": [GateBound(kind="max_drop", name="b|c", number=2)],
    }
    return {outcome: gate(*sides, of) for outcome, of in bounds.items()}


@pytest.mark.parametrize(
    ("bound", "code", "outcome"),
    [("90", 0, "passes"), ("0", 3, "undecided")],
)
def test_two_folders_of_lm_eval_need_one_command(evaluated, command, bound, code, outcome) -> None:
    given = (
        evaluated.candidate,
        "--against",
        evaluated.candidate,
        "--max-drop",
        f"sums:acc={bound}",
    )
    ended, out, err = command(*given, "--quiet")
    assert (ended, out.strip(), err) == (code, outcome, "")
    ended, out, _ = command(*given, "--json")
    assert json.loads(out)["outcome"] == outcome
    ended, out, _ = command(*given)
    assert f"{outcome}: " in out


def test_a_gain_that_is_not_there_fails_with_exit_code_1(evaluated, command, tmp_path) -> None:
    files = tmp_path / "gate.xml", tmp_path / "gate.md"
    code, out, _ = command(
        evaluated.candidate, "--against", evaluated.candidate, "--min-gain", "toys:acc=60",
        "--junit", files[0], "--markdown", files[1],
    )  # fmt: skip
    assert code == 1
    assert "fails: shown to be broken: toys:acc: gain at least 60." in out
    assert ET.parse(files[0]).getroot().get("failures") == "1"
    assert "| toys:acc: gain at least 60 |" in files[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--max-drop", "sums"], "write NAME=NUMBER"), ([], "nothing is bounded"),
     (["--max-drop", "sums:acc=-1"], "the bound on sums:acc: input should be greater"),
     (["--max-general-drop", "1"], "names 2 metrics"),
     (["--max-drop", "nq=1"], "has no scores of 'nq'")],
)  # fmt: skip
def test_wrong_use_says_what_to_do_with_exit_code_2(evaluated, command, arguments, said) -> None:
    code, out, err = command(evaluated.candidate, "--against", evaluated.incumbent, *arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


@pytest.mark.parametrize(
    ("candidate", "said"),
    [("{folder}@nope", "'nope' is no point of"), ("{folder}/nope", "there is no run, adapter"),
     ("{folder}", "no checkpoint")],
)  # fmt: skip
def test_no_error_ends_as_a_candidate_that_fails(
    evaluated, command, tmp_path, candidate, said
) -> None:
    name = candidate.format(folder=tmp_path)
    code, out, err = command(name, "--against", evaluated.incumbent, "--max-drop", "sums:acc=1")
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(
    evaluated, command, tmp_path
) -> None:
    file = tmp_path / "nowhere" / "gate.xml"
    code, out, err = command(evaluated.candidate, "--against", evaluated.incumbent,
                             "--max-drop", "sums:acc=1", "--junit", file)  # fmt: skip
    assert (code, out) == (2, "")
    assert f"{file} cannot be written" in err.replace("\n", "")


def test_a_model_needs_a_recipe(evaluated, command) -> None:
    code, _, err = command(evaluated.models[0], "--against", evaluated.incumbent,
                           "--max-drop", "sums:acc=1")  # fmt: skip
    assert code == 2
    assert "Give a recipe with --recipe FILE" in " ".join(err.split())


def test_junit_counts_failures_and_undecided_bounds(results) -> None:
    suites = ET.fromstring(output.junit(results["fails"]))
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("2", "1", "1")
    failed, undecided = suites.iter("testcase")
    assert "gain -50.0 [" in str(failed[0].get("message"))
    assert "new<&> has 0.0, old has 50.0 (%)" in str(failed[0].text)
    assert "items would decide it" in str(undecided[0].get("message"))
    passed = ET.fromstring(output.junit(results["passes"]))
    assert [child.tag for child in next(passed.iter("testcase"))] == ["system-out"]


def test_markdown_is_one_table_whatever_the_names(results) -> None:
    text = output.markdown(results["fails"])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {7}
    assert "`new<&>` against `old`" in text
    assert text.startswith("### \N{CROSS MARK} ")


def test_an_undecided_gate_says_how_many_items_would_decide(results) -> None:
    found = results["undecided"]
    needed = found.bounds[0].items_to_decide
    assert needed is not None
    assert any(f"about {needed:,} items would decide it" in note for note in output.notes(found))
    assert output.sentence(found).startswith("undecided: ")
