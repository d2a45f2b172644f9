"""The workflow in `examples/gate/` does what it says, command by command."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from backtrack import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_workflow_trains_and_passes_its_gate(tmp_path, monkeypatch, capsys) -> None:
    workflow = yaml.safe_load((ROOT / "examples/gate/workflow.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for step in workflow["jobs"]["gate"]["steps"]]
    commands = [shlex.split(step) for step in steps if step.startswith("backtrack ")]
    assert [command[1] for command in commands] == ["train", "gate"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main(command[1:])
        assert not ended.value.code
    assert "passes: every bound is shown to be kept" in capsys.readouterr().out
    assert "| stories: gain at least 20 |" in Path("gate.md").read_text(encoding="utf-8")
    assert ET.parse("gate.xml").getroot().get("failures") == "0"
