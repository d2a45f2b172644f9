"""Records from JSONL files and data sets, with the same slices for both."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from backtrack.errors import ObjectiveError
from backtrack.evaluate.objectives.documents import iter_records, load_records

RECORDS = [{"number": number} for number in range(17)]
SLICES = ["test", "test[:5]", "test[-4:]", "test[3:9]", "test[10%:]", "test[25%:50%]", "test[:-2]"]


@pytest.mark.parametrize("split", SLICES)
def test_slices_of_a_jsonl_file_are_those_of_a_data_set(jsonl, tmp_path, split):
    path = jsonl(RECORDS, "test.jsonl")
    (tmp_path / "set").mkdir()
    Path(path).rename(tmp_path / "set" / "test.jsonl")
    whole = load_records(str(tmp_path / "set"), None, split)
    assert load_records(str(tmp_path / "set" / "test.jsonl"), None, split) == whole
    assert whole


def test_a_folder_of_the_data_sets_name_wins_in_the_working_directory(
    jsonl, tmp_path, monkeypatch
):
    folder = tmp_path / "owner" / "name" / "main"
    folder.mkdir(parents=True)
    Path(jsonl(RECORDS)).rename(folder / "test.jsonl")
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - {split: test, path: main/test.jsonl}\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_records("owner/name", "main", "test[:2]") == RECORDS[:2]


def test_line_separators_inside_a_string_do_not_end_a_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two"}\n\n{"text": "three"}\n', encoding="utf-8")
    assert [r["text"] for r in load_records(str(path), None, "test")] == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ('{"a": 1}\n{"a": \n', "test", r"bad.jsonl line 2 is not JSON"),
        ('{"a": 1}\n[1]\n', "test", r"bad.jsonl line 2 holds list, not an object"),
        ('{"a": 1}\n', "test[5:]", "holds no record"),
        ("", "test", "holds no record"),
        ('{"a": 1}\n', "test[5", "is not `name`"),
        ("caf\u00e9", "test", "cannot be read as UTF-8"),
        ('{"a": ' + "[" * 100_000, "test", "line 1 is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "test", "line 1 is not JSON"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, split, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ObjectiveError, match=message):
        load_records(str(path), None, split)


@pytest.mark.parametrize("split", SLICES)
def test_records_read_one_by_one_are_those_read_at_once(jsonl, split):
    path = jsonl(RECORDS, "test.jsonl")
    assert list(iter_records(path, None, split)) == load_records(path, None, split)


def test_records_before_a_bad_line_are_read(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    records = iter_records(str(path), None, "test")
    assert next(records) == {"a": 1}
    with pytest.raises(ObjectiveError, match="line 3 is not JSON"):
        next(records)


def test_a_bad_line_outside_the_slice_is_an_error(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ObjectiveError, match="line 2 is not JSON"):
        load_records(str(path), None, "test[:1]")


def test_a_data_set_that_is_nowhere_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ObjectiveError, match=r"'no/such-set' .*split 'test'.* cannot be loaded"):
        load_records("no/such-set", None, "test")


def test_a_split_the_data_set_lacks_is_an_error(jsonl, tmp_path):
    jsonl(RECORDS, "test.jsonl")
    with pytest.raises(ObjectiveError, match="dev"):
        load_records(str(tmp_path), None, "dev")
