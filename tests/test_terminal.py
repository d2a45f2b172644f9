"""What of the terminal other programs rely on."""

from __future__ import annotations

import pytest

from backtrack import terminal


@pytest.mark.parametrize("is_quiet", [True, False])
def test_what_libraries_print_while_work_goes_on_stays_out_of_the_result(
    capsys: pytest.CaptureFixture[str], *, is_quiet: bool
) -> None:
    with terminal.progress("training", is_quiet=is_quiet):
        print("a library speaks")
    print("{}")
    shown = capsys.readouterr()
    assert shown.out == "{}\n"
    assert "a library speaks" in shown.err
