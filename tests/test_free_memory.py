"""How much memory is free: within the limit of a container, where there is one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from backtrack import free_memory
from backtrack.free_memory import free_bytes, total_host_bytes

GB = 10**9


def group(folder: Path, limit: str, used: int, dropped_first: int = 0) -> None:
    """A control group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {dropped_first}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process's group, two below the root, on a machine of 100 GB, 80 free."""
    memory = psutil.virtual_memory()._replace(available=80 * GB, total=100 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(free_memory, "_GROUPS", tmp_path)
    own = tmp_path / "outer" / "inner"
    monkeypatch.setattr(
        free_memory, "_own_groups", lambda version: () if version else (own, own.parent)
    )
    return own


def test_without_a_limit_it_is_the_machines(groups: Path) -> None:
    group(groups, "max", 5 * GB)
    assert free_bytes(torch.device("cpu")) == 80 * GB
    assert total_host_bytes() == 100 * GB


def test_a_container_has_what_its_limit_leaves(groups: Path) -> None:
    group(groups, str(16 * GB), 10 * GB, dropped_first=4 * GB)
    assert free_bytes(torch.device("cpu")) == 10 * GB
    assert total_host_bytes() == 16 * GB


def test_the_tightest_of_the_groups_around_a_process_counts(groups: Path) -> None:
    group(groups, str(16 * GB), 1 * GB)
    group(groups.parent, str(8 * GB), 6 * GB)
    assert free_bytes(torch.device("cpu")) == 2 * GB
    assert total_host_bytes() == 8 * GB


def test_this_process_is_in_a_group_that_exists_or_in_none() -> None:
    for version in ("", "memory"):
        assert all(isinstance(folder, Path) for folder in free_memory._own_groups(version))
    assert 0 < free_bytes(torch.device("cpu")) <= total_host_bytes()
