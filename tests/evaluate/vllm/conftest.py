"""Runs that a real vLLM engine measures, and the recipes they are measured by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from peft import LoraConfig

from backtrack.evaluate.engine import RunFacts
from backtrack.evaluate.transformers_engine import TransformersEngine
from backtrack.evaluate.vllm.engine import VllmEngine
from backtrack.path.placement import Placement
from backtrack.recipe import PlacementSection, Recipe, VllmSection
from tests.models import make_base, make_full_run, make_peft_run
from tests.path.tuners import configs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backtrack.run.directory import Run

ENGINE: dict[str, Any] = {
    "kind": "vllm",
    "memory_share": 0.05,
    "max_loras": 3,
    "llm": {"enforce_eager": True, "kv_cache_memory_bytes": 2**26},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Collect what needs vLLM last, so that its engines do not run beside other tests."""
    items.sort(key=lambda item: item.get_closest_marker("vllm") is not None)


def facts(run: Run) -> RunFacts:
    return RunFacts(run.base, run.final, run.path, batch_size=4)


def start(run: Run, form: Any = "auto", **changes: Any) -> VllmEngine:
    settings = VllmSection.model_validate(ENGINE | changes)
    folder = run.folder(run.final.step)
    options = VllmEngine.placement_options(PlacementSection(form=form), folder)
    return VllmEngine(Placement(run, **options), settings, facts(run))


def by_transformers(run: Run, form: Any = "auto") -> TransformersEngine:
    """The same run, answered in this process."""
    return TransformersEngine(Placement(run, form=form, device="cpu"), None, facts(run))


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """rsLoRA with ranks and scalings of their own for some modules."""
    folder = tmp_path_factory.mktemp("lora")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"],
        use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3},
    )  # fmt: skip
    return make_peft_run(folder / "run", make_base(folder / "base", width=64), config)


@pytest.fixture(scope="session")
def merged_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs whose points are merged: full fine-tuning of a model with tied embeddings, and OFT."""
    folder = tmp_path_factory.mktemp("merged")
    base = make_base(folder / "base", width=64, tied=True)
    return {
        "full": make_full_run(folder / "full", base),
        "oft": make_peft_run(folder / "oft", base, configs()["oft"]),
    }


@pytest.fixture(scope="session")
def reference(lora_run: Run) -> TransformersEngine:
    """The same run, answered in this process."""
    return by_transformers(lora_run)


@pytest.fixture(scope="session")
def served(lora_run: Run) -> Iterator[VllmEngine]:
    """An engine for the tests of one session; one of them kills it."""
    engine = start(lora_run)
    yield engine
    engine.close()


def recipe_of(objectives: list[dict[str, Any]], engine: Any = "transformers") -> Recipe:
    roles = ["target", "general"]
    listed = [{"role": roles[min(i, 1)], **o} for i, o in enumerate(objectives)]
    return Recipe.model_validate(
        {
            "name": "toy",
            "base": "toy",
            "engine": engine,
            "objectives": listed,
            "search": {"batch_size": 4},
        }
    )


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)
