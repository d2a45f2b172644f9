"""The checks of a GPU session are made at toy size on a CPU, so that they cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.__main__ import CHECKS, Check, made, run_checks
from tests.gpu.session import TOY, Figure, Session, SkippedCheckError, differences

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session("cpu", TOY, tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_is_made_at_toy_size_on_a_cpu(check: Check, session: Session) -> None:
    for name, what, _, _, verdict in made(session, check):
        assert verdict in {"ok", "not on a CPU", "skipped"}, f"{name}: {what}"


def test_a_check_that_fails_or_is_over_its_limit_does_not_end_the_session(tmp_path: Path) -> None:
    def failing(_session):
        yield differences("tensors that differ", 0)
        raise RuntimeError("CUDA error: out of luck")

    def over(_session):
        yield differences("tensors that differ", 3)
        yield Figure("a time", 2.0, at_most=1.0)

    def skipped(_session):
        raise SkippedCheckError("0 GPUs, needs 2")
        yield

    rows = run_checks(Session("cpu", TOY, tmp_path), [failing, over, skipped], 60)
    assert [row[-1] for row in rows] == ["ok", "FAILED", "OVER", "not on a CPU", "skipped"]
    assert "out of luck" in rows[1][1]
    assert [row[-1] for row in run_checks(Session("cpu", TOY, tmp_path), [over], -1)] == [
        "skipped"
    ]
