"""An exported front is served whole by one vLLM engine, and scores there what was measured."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.vllm.model import VllmModel
from backtrack.evaluate.vllm.process import Adapter, VllmProcess
from backtrack.exporter import export_front
from backtrack.point import Point
from tests.evaluate.vllm.conftest import ENGINE
from tests.exporter.test_front import LORA
from tests.models import make_selected_run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.filterwarnings("ignore"),
]


def test_every_point_of_the_front_is_served_by_one_engine_with_its_measured_scores(
    tmp_path: Path,
) -> None:
    run = make_selected_run(tmp_path, LORA, width=64)
    front = export_front(run, 3, tmp_path / "served")
    words = shlex.split((tmp_path / "served" / "serve-vllm.sh").read_text().splitlines()[1])
    given = {name: words[words.index(name) + 1] for name in ("--max-loras", "--max-lora-rank")}
    targets = words[words.index("--lora-target-modules") + 1 : words.index("--lora-modules")]
    adapters = {
        each.point: Adapter(number, tmp_path / "served" / each.folder)
        for number, each in enumerate(front.points, 1)
    }
    process = VllmProcess(
        {
            "model": front.base, "dtype": "float32", "enable_lora": True, "max_model_len": 128,
            "gpu_memory_utilization": ENGINE["memory_share"], **ENGINE["llm"],
            "max_loras": int(given["--max-loras"]), "max_lora_rank": int(given["--max-lora-rank"]),
            "lora_target_modules": targets,
        },
        tmp_path / "vllm.log",
    )  # fmt: skip
    try:
        tokenizer = AutoTokenizer.from_pretrained(front.base)
        generation = GenerationConfig.from_pretrained(front.base)
        model = VllmModel(process, tokenizer, generation, adapters.__getitem__, Point.base())
        assert run.choosing is not None
        objectives = build_objectives(run.choosing.recipe, tokenizer)
        for each in front.points:
            model.answers.arrive(each.point)
            for objective in objectives:
                items = next(
                    m.item_ids
                    for m in run.measurements()
                    if (m.point, m.split) == (each.point, "selection")
                    and m.objective.name == objective.info.name
                )
                scores = objective.measure(model, items)
                mean = sum(scores) / len(scores)
                assert mean == pytest.approx(each.scores[objective.info.name], abs=1e-4)
    finally:
        process.close()
    assert process.num_starts == 1
    assert len(front.points) >= 2
