"""What other programs rely on in the terminal's output."""

from __future__ import annotations

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
