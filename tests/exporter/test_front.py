"""A front is exported as adapters of one base: each the measured model, described as it is."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, OFTConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backtrack import cli
from backtrack.errors import UsageError
from backtrack.exporter import export_front
from backtrack.exporter.front import name_of, spread
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.export import ServedFront
from backtrack.run.directory import Run
from tests.models import make_base, make_full_run, make_selected_run

pytestmark = pytest.mark.filterwarnings("ignore")

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_selected_run(tmp_path_factory.mktemp("front"), LORA)


@pytest.fixture(scope="module")
def exported(run: Run) -> Path:
    """Every point of the front that is no base, whatever their number."""
    folder = run.path.parent / "served"
    export_front(run, 99, folder)
    return folder


@pytest.fixture(scope="module")
def front(exported: Path) -> ServedFront:
    return ServedFront.model_validate_json((exported / "manifest.json").read_text())


def test_every_point_loads_with_stock_peft_as_the_placed_model(
    run: Run, exported: Path, front: ServedFront
) -> None:
    assert len(front.points) >= 2
    placement = Placement(run, form="attached")
    for each in front.points:
        placement.place(each.point)
        base = AutoModelForCausalLM.from_pretrained(front.base)
        loaded = PeftModel.from_pretrained(base, exported / each.folder).eval()
        assert torch.equal(probe(loaded), probe(placement.model)), each.name


def test_the_manifest_has_what_was_measured_and_the_choice(run: Run, front: ServedFront) -> None:
    selection = run.selection()
    assert selection is not None
    by_point = {candidate.point: candidate for candidate in selection.candidates}
    for each in front.points:
        candidate = by_point[each.point]
        assert (each.scores, each.utility) == (candidate.scores, candidate.smoothed)
        assert candidate.is_on_front or each.is_chosen
    chosen = [each.point for each in front.points if each.is_chosen]
    assert chosen == ([] if selection.chosen.is_base else [selection.chosen.canonical])
    targets = [each.target for each in front.points]
    assert targets == sorted(targets)


def test_a_scale_of_the_strongest_adapter_of_a_step_is_each_strength(
    exported: Path, front: ServedFront
) -> None:
    for each in front.points:
        own, strongest = (
            load_file(exported / "adapters" / str(name) / "adapter_model.safetensors")
            for name in (each.name, each.scaled)
        )
        for name, tensor in own.items():
            scale = each.scale if "lora_B" in name else 1.0
            assert scale is not None
            torch.testing.assert_close(tensor, scale * strongest[name])


def test_the_server_is_given_every_adapter_by_a_path_that_is_there(
    exported: Path, front: ServedFront
) -> None:
    words = shlex.split((exported / "serve-vllm.sh").read_text().splitlines()[1])
    modules = dict(word.split("=") for word in words[words.index("--lora-modules") + 1 :])
    assert modules == {each.name: each.folder for each in front.points}
    assert all(
        (exported / path / "adapter_model.safetensors").is_file() for path in modules.values()
    )
    assert words[words.index("--max-lora-rank") + 1] == "8"
    begin, end = words.index("--lora-target-modules"), words.index("--lora-modules")
    assert words[begin + 1 : end] == ["q_proj", "v_proj"]
    readme = (exported / "README.md").read_text()
    for each in front.points:
        assert json.dumps({"model": each.name})[:-1] in readme
        merged = yaml.safe_load((exported / "mergekit" / f"{each.name}.yaml").read_text())
        assert merged["models"][0]["model"] == f"{front.base}+./{each.folder}"
        assert merged["dtype"] == "float32"
    # Without a folder for it, mergekit refuses an adapter.
    assert "--lora-merge-cache mergekit/merged --lora-merge-dtype float32" in readme


def test_the_points_are_the_choice_and_then_the_farthest_apart() -> None:
    def candidate(alpha: float, target: float, general: float, **given: Any) -> Any:
        facts = {"is_on_front": True, "share": 1.0} | given
        return SimpleNamespace(point=Point(step=20, alpha=alpha), smoothed_target=target,
                               smoothed_general=general, **facts)  # fmt: skip

    candidates = (
        candidate(0.0, 0, 100), candidate(0.2, 20, 95), candidate(0.4, 50, 90),
        candidate(0.5, 52, 89), candidate(0.6, 90, 10, is_on_front=False),
        candidate(0.8, 70, 70), candidate(0.9, 80, 60, share=0.5), candidate(1.0, 75, 50),
    )  # fmt: skip
    selection: Any = SimpleNamespace(
        candidates=candidates, chosen=Point(step=20, alpha=0.4), run=""
    )
    taken = [[c.point.alpha for c in spread(selection, num)] for num in (1, 2, 3, 9)]
    assert taken == [[0.4], [0.4, 1.0], [0.2, 0.4, 1.0], [0.2, 0.4, 0.5, 0.8, 1.0]]
    bare: Any = SimpleNamespace(candidates=candidates[:1], chosen=Point.base(), run="mine")
    with pytest.raises(UsageError, match="the front of mine has no point but the base"):
        spread(bare, 3)


def test_names_are_fit_for_files_and_requests() -> None:
    assert name_of(Point(step=20, alpha=0.25)) == "step-20-alpha-0.25"
    assert name_of(Point(step=2, alpha=1, profile="depth(0.5,1)")) == "step-2-alpha-1-depth-0.5-1"


def test_a_method_that_vllm_does_not_read_has_no_server_and_no_scales(tmp_path: Path) -> None:
    config = OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=8)
    run = make_selected_run(tmp_path, config)
    front = export_front(run, 2, tmp_path / "served")
    assert front.unserved == "OFT adapters"
    assert not (tmp_path / "served" / "serve-vllm.sh").exists()
    assert {each.scale for each in front.points} == {None}
    assert "vLLM does not read OFT adapters" in (tmp_path / "served" / "README.md").read_text()


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    bare = make_full_run(tmp_path / "full", make_base(tmp_path / "base"))
    with pytest.raises(UsageError, match="has no front yet"):
        export_front(bare, 2, tmp_path / "out")
    (tmp_path / "full" / "selection.json").write_bytes((run.path / "selection.json").read_bytes())
    with pytest.raises(UsageError, match="is a run of whole models: it has no adapter"):
        export_front(Run.open(bare.path), 2, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    with pytest.raises(UsageError, match="exists and is not empty"):
        export_front(run, 2, tmp_path)


def test_the_same_front_again_is_left_and_other_points_are_refused(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    front = export_front(run, 2, tmp_path / "out")
    assert export_front(run, 2, tmp_path / "out") == front
    assert "has these points already" in caplog.text
    with pytest.raises(UsageError, match="not empty"):
        export_front(run, 1, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / front.points[0].folder)
    with pytest.raises(UsageError, match="not empty"):
        export_front(run, 2, tmp_path / "out")


def test_the_command_names_the_points_and_the_server(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", str(run.path), *map(str, arguments)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    code, out, _ = export(tmp_path / "out", "--front", 1)
    assert code == 0
    assert "adapters/step-" in out
    assert f"serve    sh {tmp_path / 'out' / 'serve-vllm.sh'}" in " ".join(out.splitlines())
    code, _, err = export(tmp_path / "more", "--front", 1, "--as", "merged")
    assert code == 2
    assert "leave out the others" in err
