"""Measured points and the choice reach the trackers of the training; none can cost a choice."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from backtrack import cli
from backtrack.records.selection import Selection
from backtrack.run.directory import Run
from backtrack.train.trainers.front_log import log_front, rows
from tests.models import make_selected_run

Logged = dict[str, list[Any]]
"""Values by the name that the tracker shows, in the order of logging."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    return make_selected_run(tmp_path_factory.mktemp("logged"), config)


def log_to(run: Run, *trackers: str) -> tuple[tuple[str, ...], Selection]:
    """Log the run's selection; the notes, and what was logged."""
    selection = run.selection()
    assert selection is not None
    reported = Run.open(run.path)
    choosing = reported.choosing
    assert choosing is not None
    settings = [f"sft.report_to={json.dumps(trackers)}", "sft.project=told"]
    reported.choose_by(choosing.changed(settings))
    return log_front(reported, selection), selection


def numbers_of(selection: Selection, *, prefix: str) -> Logged:
    """What a tracker must have got, under the names that it shows."""
    expected: Logged = defaultdict(list)
    for row in rows(selection):
        for name, value in row.items():
            if not isinstance(value, str):
                expected[prefix + name.removeprefix("eval_")].append(pytest.approx(value))
    return expected


def test_a_row_is_a_measured_point_and_the_last_the_choice_with_its_intervals(run: Run) -> None:
    selection = run.selection()
    assert selection is not None
    *points, chosen = rows(selection)
    targets = [float(row["eval_front/target"]) for row in points]
    assert targets == sorted(targets)
    assert {row["eval_front/point"] for row in points} == {
        str(candidate.point) for candidate in selection.candidates
    }
    assert chosen["eval_chosen/point"] == str(selection.chosen)
    assert chosen["eval_chosen/alpha"] == selection.chosen.alpha
    interval = selection.report["chosen"].utility
    assert (chosen["eval_chosen/utility_low"], chosen["eval_chosen/utility_high"]) == (
        interval.low, interval.high
    )  # fmt: skip


def test_tensorboard_gets_every_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    notes, selection = log_to(run, "tensorboard")
    assert notes == ()
    events = reading.EventAccumulator(str(tmp_path))
    events.Reload()
    logged = {t: [e.value for e in events.Scalars(t)] for t in events.Tags()["scalars"]}
    assert logged == numbers_of(selection, prefix="eval/")


def test_trackio_gets_a_run_of_the_training_s_project(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackio")
    notes, selection = log_to(run, "trackio")
    assert notes == ()
    assert capsys.readouterr().out == ""  # where `select --json` prints
    logged: Logged = defaultdict(list)
    with closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "told.db")) as database:
        found = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    for name, metrics in found:
        assert name == f"{selection.run}: {selection.chosen} at weight 0.5"
        for key, value in json.loads(metrics).items():
            if key.startswith("eval/") and not isinstance(value, str):
                logged[key].append(value)
    assert logged == numbers_of(selection, prefix="eval/")


def test_wandb_offline_writes_a_run_and_closes_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    notes, selection = log_to(run, "wandb")
    assert notes == ()
    assert wandb.run is None
    (written,) = tmp_path.rglob("run-*.wandb")
    logged: Logged = defaultdict(list)
    for key, value in wandb_history(written):
        if key.startswith("eval/") and not isinstance(value, str):
            logged[key].append(value)
    assert logged == numbers_of(selection, prefix="eval/")


def wandb_history(path: Path) -> Iterator[tuple[str, float | str]]:
    """Names and values of the rows in a run's file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in log_records(path.read_bytes()[7:]):
        record = Record.FromString(data)
        for item in record.history.item:
            yield item.key or "/".join(item.nested_key), json.loads(item.value_json)


def log_records(data: bytes, before: int = 7, block: int = 32768) -> Iterator[bytes]:
    """Records of a log in LevelDB's format, of which `before` bytes of the first block are cut."""
    at, record = 0, b""
    while at + 7 <= len(data):
        left = block - (at + before) % block
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_mlflow_gets_every_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "told")
    notes, selection = log_to(run, "mlflow")
    assert notes == ()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("told")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    for name, values in numbers_of(selection, prefix="eval_").items():
        history = client.get_metric_history(logged.info.run_id, name)
        assert [each.value for each in history] == values


def test_a_tracker_that_is_not_installed_or_not_among_ours_is_said_and_costs_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", bool)
    notes, _ = log_to(run, "wandb", "codecarbon")
    assert notes == (
        "report_to names codecarbon, where the front is not logged: it goes to trackio, wandb, "
        "mlflow, tensorboard.",
        "wandb is named in report_to and is not installed here, so the front is not logged to "
        "it: pip install wandb.",
    )


def test_a_tracker_that_fails_is_said_after_the_choice_is_on_disk(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["select", str(run.path), "--weight", "0.7", "--set", "sft.report_to=tensorboard"]
        )
    assert ended.value.code == 0
    assert "tensorboard did not take the front (" in capsys.readouterr().err
    selection = run.selection()
    assert selection is not None
    assert selection.weight == 0.7


def test_nothing_is_loaded_to_log_where_no_tracker_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = run.selection()
    assert selection is not None
    monkeypatch.setitem(sys.modules, "transformers.integrations.integration_utils", None)
    assert log_front(run, selection) == ()
