"""Every check that needs a GPU, in one session: a line for each figure, and a table at the end.

    python -m tests.gpu [--only NAME,...] [--minutes 8] [--device cuda] [--toy]

Takes under eight minutes on one H100, 48 GiB of its memory, 60 GB of disk (TMPDIR) and no network:
models have random weights. A check that fails says why, and the next one begins; none begins once
the time is up. Large models come last. Exit status 1: a limit was not kept, or a check failed.
`tests/gpu/test_checks.py` makes the same checks at toy size on a CPU.

On a machine that has torch, transformers and accelerate only, take the rest along as wheels:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels \\
        peft pydantic pydantic-core annotated-types typing-inspection zstandard
    python -m pip install --no-deps --no-index --find-links wheels --target packages \\
        peft pydantic pydantic-core annotated-types typing-inspection zstandard
    PYTHONPATH=packages:. python -m tests.gpu
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tests.gpu import answering, ends, placing, saving
from tests.gpu.session import FULL, TOY, Figure, Session, SkippedCheckError

Check = Callable[[Session], Iterator[Figure]]
CHECKS: tuple[Check, ...] = (
    *saving.CHECKS, *placing.CHECKS, *ends.CHECKS, *answering.CHECKS, *placing.LARGE_CHECKS,
)  # fmt: skip
Row = tuple[str, str, str, str, str]
"""Check, what was measured, its value, its limit, and `ok`, `OVER`, `FAILED` or `skipped`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="checks, separated by commas")
    parser.add_argument("--minutes", type=float, default=8, help="after which no check begins")
    parser.add_argument("--toy", action="store_true", help="tiny models and few rounds")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    names = asked.only.split(",") if asked.only else [check.__name__ for check in CHECKS]
    checks = [check for check in CHECKS if check.__name__ in names]
    print_machine(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(asked.device, TOY if asked.toy else FULL, Path(folder))
        rows = run_checks(session, checks, asked.minutes * 60)
    print_table(rows)
    sys.exit(any(row[-1] in {"OVER", "FAILED"} for row in rows))


def print_machine(device: str) -> None:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    print(f"{name}, {torch.cuda.device_count()} GPUs, torch {torch.__version__}", flush=True)


def run_checks(session: Session, checks: Sequence[Check], seconds: float) -> list[Row]:
    """Make the checks one after the other; what one of them raises is its row."""
    rows: list[Row] = []
    begun = time.monotonic()
    for check in checks:
        if time.monotonic() - begun > seconds:
            rows.append(shown(check, "", "no time left", "", "skipped"))
            continue
        begin = time.monotonic()
        rows += made(session, check)
        print(f"    {check.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
        session.clean()
    return rows


def made(session: Session, check: Check) -> Iterator[Row]:
    """The rows of one check, printed as they are found."""
    try:
        for figure in check(session):
            is_bound = figure.is_exact or session.is_gpu
            verdict = "ok" if figure.is_met else "OVER" if is_bound else "not on a CPU"
            yield shown(check, figure.what, f"{figure.value:.4g}", figure.limit, verdict)
    except SkippedCheckError as why:
        yield shown(check, str(why), "", "", "skipped")
    except Exception:  # noqa: BLE001  # the other checks must still be made
        last = traceback.format_exc().strip().splitlines()[-1]
        where = traceback.extract_tb(sys.exc_info()[2])[-1]
        yield shown(
            check, f"{last[:200]} ({Path(where.filename).name}:{where.lineno})", "", "", "FAILED"
        )


def shown(check: Check, what: str, value: str, limit: str, verdict: str) -> Row:
    row = (check.__name__, what, value, limit, verdict)
    print("  ".join(part for part in row if part), flush=True)
    return row


def print_table(rows: Sequence[Row]) -> None:
    """All rows again, as a table in Markdown."""
    headings = ("check", "measured", "value", "limit", "")
    for row in (headings, ("---",) * len(headings), *rows):
        print("| " + " | ".join(part.replace("|", "/") for part in row) + " |")


if __name__ == "__main__":
    main()
