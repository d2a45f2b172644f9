"""Folders of lm-eval's as sides: what lm-eval itself wrote is read, and damage is named."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from backtrack.errors import RunError, UsageError
from backtrack.gate import gate
from backtrack.gate.lm_eval_results import LmEvalSide, is_lm_eval_folder
from backtrack.recipe import Recipe
from backtrack.records.gate import GateBound
from tests.gate.conftest import NUM_DOCUMENTS, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")


def reported(folder) -> Any:
    """What lm-eval reported."""
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def test_means_of_the_items_are_what_lm_eval_reported(evaluated) -> None:
    side = LmEvalSide(evaluated.candidate)
    for task in ("sums", "words"):
        for metric in ("acc", "acc_norm"):
            scores = side.find(f"{task}:{metric}")
            assert scores is not None
            assert len(scores.item_ids) == NUM_DOCUMENTS
            mean = sum(scores.scores(scores.item_ids)) / NUM_DOCUMENTS
            assert mean == pytest.approx(reported(evaluated.candidate)[task][f"{metric},none"])
            assert (scores.info.unit, scores.info.direction) == ("fraction", "maximize")
    assert side.known_names == ("sums:acc", "sums:acc_norm", "words:acc", "words:acc_norm")


def test_parts_of_a_document_are_items_and_the_document_a_cluster(tmp_path) -> None:
    """As of IFEval's instructions; a list that is no mean over parts, as of F1, is no metric."""
    parts = [[True, False, True], [False], [True, True]]
    lines = [
        {"doc_id": n, "metrics": ["instructions", "f1"], "instructions": each, "f1": [1, 0]}
        for n, each in enumerate(parts)
    ]
    results = {
        "results": {"follow": {"instructions,none": 4 / 6, "f1,none": 0.9}},
        "higher_is_better": {"follow": {"instructions": True}},
    }
    date = "2026-01-01T00-00-00.000000"
    samples = tmp_path / f"samples_follow_{date}.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / f"results_{date}.json").write_text(json.dumps(results), encoding="utf-8")
    scores = LmEvalSide(tmp_path).find("follow")
    assert scores is not None
    ids = scores.item_ids
    assert ids == tuple(f"follow/{n}" for n in ("0.0", "0.1", "0.2", "1.0", "2.0", "2.1"))
    assert scores.scores(ids) == (1, 0, 1, 0, 1, 1)
    assert [scores.clusters[item] for item in ids] == [item.partition(".")[0] for item in ids]


def test_a_group_and_a_star_mean_all_their_tasks(evaluated) -> None:
    side = LmEvalSide(evaluated.candidate)
    for name in ("toys:acc", "*s:acc"):
        scores = side.find(name)
        assert scores is not None
        assert {item.partition("/")[0] for item in scores.item_ids} == {"sums", "words"}
        assert len(scores.item_ids) == 2 * NUM_DOCUMENTS


def test_a_task_of_several_metrics_must_say_which(evaluated) -> None:
    side = LmEvalSide(evaluated.candidate)
    with pytest.raises(
        UsageError, match=r"'sums' names 2 metrics\. There are sums:acc, sums:acc_n"
    ):
        side.find("sums")
    with pytest.raises(UsageError, match=r"'sums:f1' names no metrics\. There are sums:acc"):
        side.find("sums:f1")
    assert side.find("mmlu:acc") is None


def test_a_gate_over_two_folders_has_the_paired_difference_and_needs_no_model(evaluated) -> None:
    sides = LmEvalSide(evaluated.candidate), LmEvalSide(evaluated.incumbent)
    bounds = [GateBound(kind="max_drop", name="sums:acc", number=60)]
    found = gate(*sides, bounds)
    means = [reported(f)["sums"]["acc,none"] for f in (evaluated.candidate, evaluated.incumbent)]
    assert found.bounds[0].gain.estimate == pytest.approx(100 * (means[0] - means[1]))
    assert (found.outcome, found.num_looks) == ("passes", 1)


def test_a_recipe_says_the_metric_and_the_role(evaluated) -> None:
    recipe = Recipe.model_validate({
        "name": "toy", "base": "none", "objectives": [
            {"kind": "lm_eval", "role": "target", "task": "sums", "metric": "acc_norm"},
            {"kind": "lm_eval", "role": "general", "task": "words", "metric": "acc", "name": "w"},
        ],
    })  # fmt: skip
    sides = [
        LmEvalSide(folder, sections=recipe.objectives)
        for folder in (evaluated.candidate, evaluated.incumbent)
    ]
    assert set(sides[0].objectives) == {"sums", "w"}
    bounds = [
        GateBound(kind="max_drop", name=role, is_role=True, number=90)
        for role in ("target", "general")
    ]
    found = gate(sides[0], sides[1], bounds)
    means = reported(evaluated.candidate)
    assert [each.candidate for each in found.bounds] == pytest.approx(
        [100 * means["sums"]["acc_norm,none"], 100 * means["words"]["acc,none"]]
    )


def test_without_a_recipe_named_targets_are_the_target_and_the_rest_is_general(evaluated) -> None:
    side = LmEvalSide(evaluated.candidate, targets=["sums"])
    names = "sums:acc", "words:acc"
    found = [scores.info.role for name in names if (scores := side.find(name)) is not None]
    assert found == ["target", "general"]


def test_other_few_shot_prompts_and_a_limit_are_refused(evaluated, tmp_path) -> None:
    data = {"fewshot_random_seed": 1, "num_fewshot": 0}
    evaluate(evaluated.models[0], evaluated.tasks, tmp_path / "few", ["sums"], limit=20, **data)
    bounds = [GateBound(kind="max_drop", name="sums:acc", number=1)]
    sides = LmEvalSide(tmp_path / "few"), LmEvalSide(evaluated.incumbent)
    with pytest.raises(UsageError, match=r"sums/20 is only in .*incumbent \(20 such items\)"):
        gate(*sides, bounds)
    folder = copied(evaluated.candidate, tmp_path)
    (path,) = folder.rglob("samples_sums_*.jsonl")
    text = path.read_text(encoding="utf-8")
    samples = [json.loads(line) for line in text.splitlines()]
    samples[3]["prompt_hash"] = "other"
    samples[3]["arguments"]["gen_args_0"]["arg_0"] = "sums 2: 4\nsums 3:"
    path.write_text("\n".join(map(json.dumps, samples)), encoding="utf-8")
    with pytest.raises(UsageError, match=r"the prompt of sums/3 differ .*same task, examples"):
        gate(LmEvalSide(folder), LmEvalSide(evaluated.incumbent), bounds)


def test_results_without_samples_say_how_to_get_them(evaluated, tmp_path) -> None:
    folder = copied(evaluated.incumbent, tmp_path)
    for path in folder.rglob("samples_*.jsonl"):
        path.unlink()
    assert is_lm_eval_folder(folder)
    with pytest.raises(
        RunError, match=r"(?s)no scores by document.*--tasks .*sums.* --log_samples"
    ):
        LmEvalSide(folder)


def test_samples_without_results_and_of_other_results_are_refused(evaluated, tmp_path) -> None:
    folder = copied(evaluated.incumbent, tmp_path)
    (results,) = folder.rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    found["results"]["sums"]["acc,none"] += 0.1
    results.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"acc of 'sums' is .* in the results and the mean of its"
    ):
        LmEvalSide(folder).find("sums:acc")
    results.unlink()
    with pytest.raises(UsageError, match=r"no results_.*says whether more of 'acc' of 'sums' is"):
        LmEvalSide(folder).find("sums:acc")


def test_damaged_samples_are_named_by_file_and_line(evaluated, tmp_path) -> None:
    folder = copied(evaluated.incumbent, tmp_path)
    (path,) = folder.rglob("samples_sums_*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    for damaged in (lines[0][:50], "[1]", '{"doc": 1}', lines[0]):
        path.write_text("\n".join([*lines[:5], damaged]), encoding="utf-8")
        with pytest.raises(RunError, match="line 6 is no sample of lm-eval"):
            LmEvalSide(folder).find("sums:acc")


def test_the_newest_samples_count_and_two_models_are_refused(evaluated, tmp_path) -> None:
    folder = copied(evaluated.incumbent, tmp_path)
    (path,) = folder.rglob("samples_sums_*.jsonl")
    older = path.with_name("samples_sums_2020-01-01T00-00-00.000000.jsonl")
    older.write_text("damaged", encoding="utf-8")
    scores = LmEvalSide(folder).find("sums:acc")
    assert scores is not None
    other = folder / "another-model"
    other.mkdir()
    shutil.copy(path, other)
    with pytest.raises(RunError, match=r"has results of 2 models: .*another-model"):
        LmEvalSide(folder)
