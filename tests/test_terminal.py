"""What other programs rely on in the terminal's output."""

from __future__ import annotations

import io

import pytest

from backtrack import terminal


@pytest.mark.parametrize("is_quiet", [True, False])
def test_what_libraries_print_during_work_stays_out_of_standard_output(
    capsys: pytest.CaptureFixture[str], *, is_quiet: bool
) -> None:
    with terminal.progress("training", is_quiet=is_quiet):
        print("a library speaks")
    print("{}")
    printed = capsys.readouterr()
    assert printed.out == "{}\n"
    assert "a library speaks" in printed.err


HOSTILE = "[/red] [bold]bold[/bold] \x1b]0;title\x07 \u202egnp"
SHOWN = "[/red] [bold]bold[/bold] \\x1b]0;title\\x07 \\u202egnp"


def test_names_are_text_and_never_markup_or_control_sequences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.print_line(HOSTILE)
    terminal.print_error(HOSTILE)
    terminal.print_rows([HOSTILE], [[HOSTILE]])
    terminal.print_findings([("ok", HOSTILE, HOSTILE, HOSTILE)])
    with terminal.progress("measuring") as report:
        report(1, 2, HOSTILE)
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert "\x1b" not in shown
    words = " ".join(shown.split())
    assert words.count(SHOWN.split()[0]) == 8
    assert printed.out.splitlines()[0] == SHOWN
    assert f"error: {SHOWN}" in printed.err


def test_a_table_is_whole_at_any_width_and_absent_without_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    console = terminal.PlainConsole(file=screen, width=20, color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    terminal.print_rows(["name", "value"], [])
    assert not screen.getvalue()
    terminal.print_rows(["name", "value"], [["model.layers.10.mlp.down_proj", "0.0123"]])
    assert "\N{HORIZONTAL ELLIPSIS}" not in screen.getvalue()
    assert "down_proj" in "".join(screen.getvalue().split()).replace("0.0123", "")


def test_a_progress_bar_shows_a_hostile_name_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = terminal.PlainConsole(file=screen, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(terminal, "err", console)
    with terminal.progress("measuring") as report:
        report(1, 2, HOSTILE)
    assert "[/red] [bold]bold[/bold]" in screen.getvalue()
    assert "title\x07" not in screen.getvalue()
