"""A gate's answer as a sentence, as rows of a table, as JUnit XML and as Markdown."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from backtrack import formatting

if TYPE_CHECKING:
    from backtrack.records.gate import BoundResult, GateResult

HEADINGS = ("bound", "candidate", "incumbent", "gain", "items", "outcome")
_MARKS = {"passes": "\N{WHITE HEAVY CHECK MARK}", "fails": "\N{CROSS MARK}"}
_OPEN_MARK = "\N{WHITE QUESTION MARK ORNAMENT}"


def row(result: BoundResult) -> tuple[str, ...]:
    """The cells of one bound, under `HEADINGS`; more gain is better."""
    scores = [formatting.number(v, result.unit) for v in (result.candidate, result.incumbent)]
    gain = formatting.interval(result.gain, result.unit, is_signed=True)
    return str(result.bound), *scores, gain, f"{result.num_items:,}", result.outcome


def sentence(result: GateResult) -> str:
    """The answer in one sentence."""
    names = [str(r.bound) for r in result.bounds if r.outcome == result.outcome]
    if result.outcome == "passes":
        return "passes: every bound is shown to be kept."
    if result.outcome == "fails":
        return f"fails: shown to be broken: {'; '.join(names)}."
    return f"undecided: the items show neither way: {'; '.join(names)}."


def notes(result: GateResult) -> tuple[str, ...]:
    """What a reader should know beside the table."""
    shared = " for all bounds together" if len(result.bounds) > 1 else ""
    looks = f" and {result.num_looks} looks" if result.num_looks > 1 else ""
    return (
        *(_needed(each) for each in result.bounds if each.outcome == "undecided"),
        f"Each end of an interval holds at {result.confidence:.0%}{shared}{looks}. "
        f"{result.items_compared:,} of {result.items_available:,} items were compared.",
        *result.notes,
    )


def _needed(result: BoundResult) -> str:
    if result.items_to_decide is None:
        return f"{result.bound}: the gain lies on the bound; no number of items decides that."
    return (
        f"{result.bound}: about {result.items_to_decide:,} items would decide it, if the gain is "
        f"what {result.num_items:,} items show."
    )


def markdown(result: GateResult) -> str:
    """The answer as Markdown, for a pull request."""
    mark = _MARKS.get(result.outcome, _OPEN_MARK)
    cells = [HEADINGS, ("---",) * len(HEADINGS), *map(row, result.bounds)]
    table = [f"| {' | '.join(map(_escaped, line))} |" for line in cells]
    lines = [
        f"### {mark} Gate: {_escaped(sentence(result))}",
        "",
        f"`{result.candidate}` against `{result.incumbent}`",
        "",
        *table,
        "",
        *(f"- {_escaped(note)}" for note in notes(result)),
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def junit(result: GateResult) -> str:
    """The answer as JUnit XML: a test case a bound, a failure if it fails, an error if undecided.

    Attributes `tests`, `failures` and `errors` count them.
    """
    num = {o: sum(r.outcome == o for r in result.bounds) for o in ("fails", "undecided")}
    counts = {
        "tests": str(len(result.bounds)),
        "failures": str(num["fails"]),
        "errors": str(num["undecided"]),
    }
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "backtrack gate", **counts})
    for each in result.bounds:
        case = ET.SubElement(
            suite, "testcase", {"classname": "backtrack.gate", "name": str(each.bound)}
        )
        _, candidate, incumbent, gain, items, _ = row(each)
        said = (
            f"{result.candidate} has {candidate}, {result.incumbent} has {incumbent} "
            f"({each.unit}); gain {gain} on {items} items."
        )
        if each.outcome == "fails":
            ET.SubElement(
                case, "failure", {"message": f"shown to be broken: gain {gain}"}
            ).text = said
        elif each.outcome == "undecided":
            ET.SubElement(
                case, "error", {"message": _needed(each), "type": "undecided"}
            ).text = said
        else:
            ET.SubElement(case, "system-out").text = said
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
