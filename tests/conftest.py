"""Fixtures every part shares: the small base on disk, and the folder of real documents."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in order."""
    longest = [config.rootpath / "tests" / name for name in LONGEST]
    items.sort(key=lambda item: item.path not in longest)
