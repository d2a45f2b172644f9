"""A device that runs out of memory: smaller passes, and nothing is asked twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backtrack import free_memory
from backtrack.errors import ObjectiveError
from backtrack.evaluate.language_model import CompletionLimits
from backtrack.evaluate.shared_reading.memory import fixed, measured
from backtrack.evaluate.torch_model import TorchModel
from tests.evaluate.shared_reading.test_architectures import SHARED, make, sequences
from tests.models import make_tokenizer


class Small:
    """A device on which a pass of more than some tokens does not fit, from some pass on."""

    def __init__(self, model: Any, most_tokens: int, num_passes: int = 0) -> None:
        self.read: list[torch.Tensor] = []
        self._most_tokens, self._num_passes = most_tokens, num_passes
        model.register_forward_pre_hook(self._allocate, with_kwargs=True)

    def _allocate(self, _model: Any, _args: Any, asked: dict[str, Any]) -> None:
        is_small = len(self.read) >= self._num_passes
        if is_small and asked["input_ids"].numel() > self._most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.read.append(asked["input_ids"])


def test_passes_shrink_where_memory_does_not_suffice_and_answered_requests_stay_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make(*SHARED["llama"])
    asked = [each._replace(ids=[n, *each.ids[1:]]) for n in range(3, 60) for each in sequences()]
    expected = TorchModel(model, make_tokenizer(), "auto").score(asked)
    ours = TorchModel(model, make_tokenizer(), "auto")
    assert ours.reads_trees
    device = Small(model, 200, num_passes=2)
    found = ours.score(asked)
    assert [f.log_likelihood for f in found] == pytest.approx(
        [e.log_likelihood for e in expected], abs=1e-4
    )
    assert any("going on with" in line for line in caplog.messages)
    early, late = (branched(device.read[:2]), branched(device.read[2:]))
    assert early
    assert not early & late
    caplog.clear()
    ours.score(asked)
    assert not caplog.messages  # what was found to fit stays


def branched(passes: list[torch.Tensor]) -> set[int]:
    """The tokens that open the rows with branches."""
    return {int(row[0]) for ids in passes if ids.shape[1] > 30 for row in ids}


def test_completions_shrink_too(caplog: pytest.LogCaptureFixture) -> None:
    model = make(*SHARED["llama"])
    prompts = [sequence.ids for sequence in sequences()]
    limits = CompletionLimits(9, ())
    expected = TorchModel(model, make_tokenizer(), "auto").complete(prompts, limits)
    ours = TorchModel(model, make_tokenizer(), "auto")
    assert ours.reads_trees
    Small(model, 64)
    assert ours.complete(prompts, limits) == expected
    assert any("going on with" in line for line in caplog.messages)


@pytest.mark.parametrize(("batch_size", "said"), [("auto", "one sequence"), (3, "Lower `search")])
def test_memory_that_never_suffices_is_said(batch_size: Any, said: str) -> None:
    model = make(*SHARED["llama"])
    ours = TorchModel(model, make_tokenizer(), batch_size)
    assert ours.reads_trees
    Small(model, 0)
    with pytest.raises(ObjectiveError, match=said):
        ours.score(sequences())


def test_budgets_are_bounded_by_the_device_and_by_a_fixed_size() -> None:
    budget = measured(make(*SHARED["llama"]))
    assert (budget.tokens, budget.rows) == (1024, 64)
    assert budget.cached_tokens & (budget.cached_tokens - 1) == 0
    assert fixed(3, [10, 40])[:2] == (120, 3)


def test_the_limit_of_a_container_bounds_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(*SHARED["llama"])
    limit, used = 2 * 10**9, 2 * 10**9 - 10**6
    monkeypatch.setattr(free_memory, "_limits", lambda: [(limit, used)])
    assert measured(model).tokens < 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_little_memory_answers_in_smaller_passes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make("llama", {"hidden_size": 1024, "intermediate_size": 8192}).to("cuda")
    asked = [each._replace(ids=[n, *each.ids[1:]]) for n in range(3, 80) for each in sequences()]
    expected = TorchModel(model, make_tokenizer(), "auto").score(asked)
    ours = TorchModel(model, make_tokenizer(), "auto")
    assert ours.reads_trees
    assert ours.budget([]).tokens == 8192
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_allocated() + 64 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        found = ours.score(asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("going on with" in line for line in caplog.messages)
    assert [f.log_likelihood for f in found] == pytest.approx(
        [e.log_likelihood for e in expected], abs=1e-2
    )
