"""Fixtures every part shares: the small base on disk, and the folder of real documents."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read once, when trackio is first imported; its default lies in the user's own cache.
_trackio = tempfile.TemporaryDirectory(prefix="trackio-")
os.environ["TRACKIO_DIR"] = _trackio.name
# What the tests' own runs may run is not noted among the user's.
_state = tempfile.TemporaryDirectory(prefix="state-")
os.environ["XDG_STATE_HOME"] = _state.name
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each compute on every core wait for one another: ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = ("test_real_input.py", "test_examples.py", "test_cli.py")
"""Files that take minutes each: begun first, so that no worker is alone with one at the end."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark documents and the small English model, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the benchmark documents of ../shared, which are not here")
    return SHARED


@pytest.fixture
def study_on_disk() -> None:
    """Named by a test that reads or damages `study.db`, in a module of `study_in_memory`."""


@pytest.fixture
def study_in_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna keeps its studies in this process, by URL as in files.

    SQLite takes longer than all else in a search of formulas, of which nothing is decided by the
    file: `tests/selection/test_driver.py` tests it as it is.
    """
    if "study_on_disk" in request.fixturenames:
        return
    from optuna.storages import InMemoryStorage

    from backtrack.selection.search import study

    class Storage(InMemoryStorage):
        engine = SimpleNamespace(dispose=lambda: None)

    opened: defaultdict[str, Storage] = defaultdict(Storage)
    monkeypatch.setattr(study, "_open_storage", opened.__getitem__)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in order."""
    longest = [config.rootpath / "tests" / name for name in LONGEST]
    items.sort(key=lambda item: item.path not in longest)
