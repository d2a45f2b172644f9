"""Each trap of lm-eval that gives a wrong number in silence, and what is refused up front."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest
import torch
from peft import LoraConfig, get_peft_model

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.objectives import lm_eval_library as library
from tests.evaluate.asking import as_model

NEXT = {"kind": "lm_eval", "task": "toy_next", "metric": "exact_match", "filter": "whole"}
PARTS = {"kind": "lm_eval", "task": "toy_parts", "metric": "letters"}
CHOICE = {"kind": "lm_eval", "task": "toy_choice", "metric": "acc"}


@pytest.fixture
def build(toys, recipe_of, tokenizer):
    """The first objective of a recipe with these settings."""

    def first(settings: dict[str, Any], batch_size: int = 4, **more: Any) -> Any:
        settings = {"include_path": toys.folder, **settings, **more}
        return build_objectives(recipe_of(settings, batch_size=batch_size), tokenizer)[0]

    return first


@pytest.fixture
def calls(monkeypatch):
    """What lm-eval was asked and what it answered, call by call; lm-eval itself runs."""
    seen: list[dict[str, Any]] = []
    real: Any = vars(library)["evaluate"]

    def recording(*args: Any, **kwargs: Any) -> Any:
        answer = real(*args, **kwargs)
        seen.append({"asked": kwargs, "samples": copy.deepcopy(answer["samples"])})
        return answer

    monkeypatch.setattr(library, "evaluate", recording)
    return seen


def prompts(call: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}/{sample['doc_id']}": [arguments[0] for arguments in sample["arguments"]]
        for name, samples in call["samples"].items()
        for sample in samples
    }


def batches_of(model: Any) -> list[tuple[int, ...]]:
    """Shapes of the token batches the model reads from now on."""
    seen: list[tuple[int, ...]] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        seen.append(tuple(ids.shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def numbered(task: str, *numbers: int) -> list[str]:
    return [f"{task}/{number}" for number in numbers]


def test_items_are_all_documents_by_task_and_number(build, toys):
    objective = build(NEXT)
    assert objective.item_ids == tuple(numbered("toy_next", *range(len(toys.documents))))


def test_each_document_has_its_own_score_in_whatever_order_it_is_asked(
    build, successor, tokenizer
):
    asked = numbered("toy_next", 50, 3, 7, 59, 0, 1)
    assert build(NEXT).measure(as_model(successor, tokenizer), asked) == (1, 0, 1, 1, 0, 1)


def test_likelihood_tasks_give_the_same_items_right(build, successor, tokenizer):
    asked = numbered("toy_choice", 50, 3, 7, 59, 0, 1)
    assert build(CHOICE).measure(as_model(successor, tokenizer), asked) == (1, 0, 1, 1, 0, 1)


def test_few_shot_prompts_are_the_same_at_every_call(build, successor, tokenizer, calls):
    objective = build(NEXT)
    asked = numbered("toy_next", 2, 5, 11)
    objective.measure(as_model(successor, tokenizer), asked)
    objective.measure(as_model(successor, tokenizer), asked)
    assert prompts(calls[0]) == prompts(calls[1])


def test_few_shot_prompts_do_not_depend_on_the_other_documents_asked_for(
    build, successor, tokenizer, calls
):
    objective = build(NEXT)
    objective.measure(as_model(successor, tokenizer), numbered("toy_next", 2, 5, 11))
    objective.measure(as_model(successor, tokenizer), numbered("toy_next", 11))
    name = "toy_next/11"
    assert prompts(calls[0])[name] == prompts(calls[1])[name]


def test_few_shot_examples_differ_between_documents(build, successor, tokenizer, calls):
    build(NEXT).measure(as_model(successor, tokenizer), numbered("toy_next", *range(6)))
    shots = {tuple(re.findall(r"shot \d+", p[0])) for p in prompts(calls[0]).values()}
    assert len(shots) > 3


def test_documents_that_a_task_shuffles_are_shuffled_once(build, successor, tokenizer, calls):
    objective = build(CHOICE, task="toy_shuffled")
    asked = numbered("toy_shuffled", *range(8))
    objective.measure(as_model(successor, tokenizer), asked)
    random.seed(99)
    objective.measure(as_model(successor, tokenizer), asked)
    documents = [[s["doc"] for s in call["samples"]["toy_shuffled"]] for call in calls]
    assert documents[0] == documents[1]
    assert build(CHOICE, task="toy_shuffled").info == objective.info


def test_weights_changed_in_place_change_the_scores_and_back(build, successor, tokenizer):
    objective = build(NEXT)
    asked = numbered("toy_next", *range(10))
    before = objective.measure(as_model(successor, tokenizer), asked)
    head = successor.lm_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.zero_()
    silenced = objective.measure(as_model(successor, tokenizer), asked)
    with torch.no_grad():
        head.copy_(kept)
    assert sum(before) == 3
    assert sum(silenced) == 0
    assert objective.measure(as_model(successor, tokenizer), asked) == before


def test_the_batches_repeat_in_whatever_order_documents_are_asked_for(build, model, tokenizer):
    objective = build(CHOICE)
    asked = numbered("toy_choice", *range(7))
    with_model = as_model(model, tokenizer, 1)
    shapes = batches_of(model)
    first = objective.measure(with_model, asked)
    num_first = len(shapes)
    again = objective.measure(with_model, asked[::-1])
    assert num_first > 1
    assert shapes[num_first:] == shapes[:num_first]
    assert again == first[::-1]


def test_lm_eval_is_asked_for_sorted_documents_without_limit_or_cache(
    build, successor, tokenizer, calls
):
    build(NEXT).measure(as_model(successor, tokenizer), numbered("toy_next", 50, 3, 7))
    asked = calls[0]["asked"]
    assert asked["samples"] == {"toy_next": [3, 7, 50]}
    assert asked.get("limit") is None
    assert asked["cache_requests"] is False
    assert asked["apply_chat_template"] is False


def test_only_the_tasks_asked_for_are_evaluated(build, successor, tokenizer, calls):
    objective = build(CHOICE, task="toys")
    assert {item.rpartition("/")[0] for item in objective.item_ids} == {
        "toy_choice",
        "toy_shuffled",
    }
    objective.measure(as_model(successor, tokenizer), ["toy_shuffled/3"])
    assert list(calls[0]["samples"]) == ["toy_shuffled"]
    assert len(calls[0]["samples"]["toy_shuffled"]) == 1


@pytest.mark.parametrize("task", ["toys", "toy_[cs]*", "toy_*d", "toy_choice"])
def test_groups_and_wildcards_name_tasks(build, task):
    known = {item.rpartition("/")[0] for item in build(CHOICE, task=task).item_ids}
    assert known <= {"toy_choice", "toy_shuffled"}
    assert known


def test_each_filter_has_scores_of_its_own(build, successor, tokenizer):
    asked = numbered("toy_next", 1, 2)
    whole = build(NEXT).measure(as_model(successor, tokenizer), asked)
    letter = build(NEXT, filter="first-letter").measure(as_model(successor, tokenizer), asked)
    assert (whole, letter) == ((1, 0), (0, 0))


def test_generated_length_is_the_recipes_beyond_lm_evals_default(
    build, successor, tokenizer, calls
):
    build(NEXT, max_gen_toks=300).measure(as_model(successor, tokenizer), ["toy_next/0"])
    answer = calls[0]["samples"]["toy_next"][0]["resps"][0][0]
    assert len(answer) == 300


def test_the_number_of_few_shot_examples_is_the_recipes(build, successor, tokenizer, calls):
    build(NEXT, num_fewshot=5).measure(as_model(successor, tokenizer), ["toy_next/0"])
    build(NEXT, num_fewshot=0).measure(as_model(successor, tokenizer), ["toy_next/0"])
    counts = [prompts(call)["toy_next/0"][0].count("shot") for call in calls]
    assert counts == [5, 0]


@pytest.mark.parametrize("is_peft", [False, True])
def test_model_and_tokenizer_are_left_as_they_were(build, model, fresh_tokenizer, is_peft):
    if is_peft:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    tokenizer = fresh_tokenizer()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = build(CHOICE).measure(as_model(model, tokenizer), numbered("toy_choice", *range(4)))
    assert len(scores) == 4
    assert model.training
    assert all(module.training for module in model.modules())
    assert tokenizer.pad_token is None
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_can_be_trained_after_it_was_measured(build, model, tokenizer):
    model.train()
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    build(CHOICE).measure(as_model(model, tokenizer), ["toy_choice/0"])
    build(NEXT).measure(as_model(model, tokenizer), ["toy_next/0"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([tokenizer("the cat sat")["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_an_adapter_that_is_identity_scores_as_its_base(build, model, tokenizer):
    asked = numbered("toy_choice", *range(8))
    plain = build(CHOICE).measure(as_model(model, tokenizer), asked)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert build(CHOICE).measure(as_model(adapted, tokenizer), asked) == plain


def test_global_random_state_is_left_alone(build, successor, tokenizer):
    objective = build(NEXT)
    random.seed(5)
    torch.manual_seed(5)
    state = (random.getstate(), torch.get_rng_state().tolist())
    objective.measure(as_model(successor, tokenizer), ["toy_next/0"])
    assert (random.getstate(), torch.get_rng_state().tolist()) == state


def test_nothing_is_printed_unless_asked(build, successor, tokenizer, capfd):
    build(NEXT).measure(as_model(successor, tokenizer), ["toy_next/0"])
    assert capfd.readouterr() == ("", "")


def test_objectives_of_a_recipe_share_loaded_tasks(toys, recipe_of, tokenizer):
    shared = {**NEXT, "include_path": toys.folder}
    recipe = recipe_of(shared, {**shared, "filter": "first-letter", "name": "letter"})
    built: Any = build_objectives(recipe, tokenizer)
    one, other = built
    assert one._tasks is other._tasks


def test_fingerprint_is_stable_and_covers_settings(build):
    kept = build(NEXT).info.fingerprint
    assert build(NEXT, batch_size=5).info.fingerprint == kept
    others = [
        build(NEXT, num_fewshot=1),
        build(NEXT, max_gen_toks=9),
        build(NEXT, filter="first-letter"),
        build(CHOICE),
    ]
    assert len({kept, *(other.info.fingerprint for other in others)}) == 5


def test_fingerprint_covers_the_documents(build, toys):
    kept = build(NEXT).info.fingerprint
    path = Path(toys.folder) / "test.jsonl"
    text = path.read_text()
    documents = [json.loads(line) for line in text.splitlines()]
    documents[30]["answer"] = "other"
    try:
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
        assert build(NEXT).info.fingerprint != kept
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "toy_nxet"}, "Did you mean 'toy_next'"),
        ({"task": "no_such_*"}, "no task, group or tag"),
        ({"metric": "exact_mtach"}, "Did you mean 'exact_match'.*It has exact_match"),
        ({"filter": "hole"}, "Did you mean 'whole'.*whole, first-letter"),
        ({"metric": "bleu"}, "about the whole set.*Choose one of exact_match"),
        ({"direction": "minimize"}, "write `direction: maximize`"),
        ({"apply_chat_template": True}, "no chat template"),
        ({"fewshot_as_multiturn": True}, "needs `apply_chat_template"),
        ({"num_fewshot": 99}, "cannot build its first prompt.*99 few-shot"),
        ({"include_path": "/no/such/folder"}, "is not a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_is_used(build, settings, message):
    with pytest.raises(ObjectiveError, match=message):
        build(NEXT, **settings)


def test_an_aggregate_metric_of_a_choice_task_is_refused(build):
    with pytest.raises(ObjectiveError, match=r"'f1'.*about the whole set.*Choose one of acc"):
        build(CHOICE, metric="f1")


def test_parts_of_a_document_are_items_whose_mean_is_lm_evals_and_one_cluster(
    build, successor, tokenizer, calls, toys
):
    objective = build(PARTS)
    numbers = [0, 1, 7, 50]
    asked = [
        i for i in objective.item_ids if int(i.partition("/")[2].partition(".")[0]) in numbers
    ]
    scores = objective.measure(as_model(successor, tokenizer), asked[::-1])[::-1]
    samples = calls[0]["samples"]["toy_parts"]
    assert calls[0]["asked"]["samples"] == {"toy_parts": numbers}
    by_document = [sample["letters"] for sample in samples]
    assert list(scores) == [float(each) for document in by_document for each in document]
    assert 0 < sum(scores) < len(scores)
    assert len({len(document) for document in by_document}) > 1
    assert objective.measure(as_model(successor, tokenizer), asked[1:2]) == scores[1:2]
    num_parts = [2 + len(document["question"]) % 3 for document in toys.documents]
    assert len(objective.item_ids) == sum(num_parts) == len(objective.texts())
    assert {i: objective.clusters[i] for i in asked[:2]} == {
        "toy_parts/0.0": "toy_parts/0.0",
        "toy_parts/0.1": "toy_parts/0.0",
    }
    assert len(set(objective.clusters.values())) == len(toys.documents)


def test_a_mean_of_documents_means_is_no_mean_over_parts(build):
    with pytest.raises(ObjectiveError, match=r"'documents'.*about the whole set.*Choose one of l"):
        build(PARTS, metric="documents")


def test_unknown_and_repeated_items_are_refused(build, successor, tokenizer):
    objective = build(NEXT)
    with pytest.raises(ObjectiveError, match="'toy_next/600'"):
        objective.measure(as_model(successor, tokenizer), ["toy_next/600"])
    with pytest.raises(ObjectiveError, match="twice"):
        objective.measure(as_model(successor, tokenizer), numbered("toy_next", 1, 1))
    assert objective.measure(as_model(successor, tokenizer), []) == ()


def test_a_failure_of_lm_eval_says_what_and_where(
    build, successor, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    objective = build(NEXT)

    def fail(*_: Any) -> None:
        raise RuntimeError("no such answer")

    monkeypatch.setattr(objective._tasks["toy_next"], "process_results", fail)
    with pytest.raises(ObjectiveError, match=r"^toy_next: lm-eval failed: RuntimeError: no such"):
        objective.measure(as_model(successor, tokenizer), ["toy_next/0"])


def test_completions_longer_than_the_context_are_refused(build, successor, tokenizer):
    objective = build(NEXT, max_gen_toks=5000)
    with pytest.raises(
        ObjectiveError, match=r"^toy_next: 5000 new tokens leave no room.*max_gen_toks"
    ):
        objective.measure(as_model(successor, tokenizer), ["toy_next/0"])


def test_chat_prompts_go_through_the_template(
    build, successor, fresh_tokenizer, recipe_of, toys, calls
):
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    )
    settings = {
        **NEXT,
        "include_path": toys.folder,
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
    }
    objective = build_objectives(recipe_of(settings), tokenizer)[0]
    objective.measure(as_model(successor, tokenizer), ["toy_next/0"])
    prompt = prompts(calls[0])["toy_next/0"][0]
    assert prompt.count("[user]") == 3
    assert prompt.endswith("[assistant]")


def test_documents_with_the_same_field_are_a_cluster_of_their_task(build):
    objective = build({**CHOICE, "task": "toys"}, cluster="label")
    tasks = {item.rpartition("/")[0] for item in objective.clusters}
    clusters = set(objective.clusters.values())
    assert tasks == {cluster.rpartition("/")[0] for cluster in clusters}
    assert all(i.rpartition("/")[0] == c.rpartition("/")[0] for i, c in objective.clusters.items())
    assert objective.info.fingerprint != build({**CHOICE, "task": "toys"}).info.fingerprint
    with pytest.raises(ObjectiveError, match=r"toy_choice/0 has no field 'passage'"):
        build(CHOICE, cluster="passage")


@pytest.mark.parametrize("task", ["toy_next", "gsm8k", "leaderboard_bbh_navigate"])
def test_one_task_is_found_without_reading_all_of_lm_evals(toys, monkeypatch, task):
    def read_all(_include_paths):
        raise AssertionError

    monkeypatch.setattr(library, "_index", read_all)
    assert task in library._manager(task, (toys.folder,)).all_subtasks
    with pytest.raises(AssertionError):
        library._manager("leaderboard_bbh", (toys.folder,))


def test_a_template_is_compiled_once_for_all_documents(build, successor, tokenizer, monkeypatch):
    compiled = []
    compile_once: Any = lm_eval.utils.env.compile

    def noting(source: str) -> Any:
        compiled.append(source)
        return compile_once(source)

    monkeypatch.setattr(lm_eval.utils.env, "compile", noting)
    library._template.cache_clear()
    objective = build(NEXT)
    compiled.clear()
    for _ in range(2):
        objective.measure(as_model(successor, tokenizer), objective.item_ids)
    assert len(compiled) == len(set(compiled))
