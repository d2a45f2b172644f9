"""Stock PEFT and transformers load an export, with the placed model's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, OFTConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from backtrack.errors import ExportError, UsageError
from backtrack.exporter import AsForm, export
from backtrack.exporter.card import Card
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import load_recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from tests.models import make_base, make_full_run, make_peft_run

if TYPE_CHECKING:
    from backtrack.records.selection import Selection

pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR = ["q_proj", "v_proj", "down_proj"]
CONFIGS = {
    "lora": LoraConfig(
        task_type="CAUSAL_LM", target_modules=LINEAR, r=4, rank_pattern={"v_proj": 2}
    ),
    "dora": LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, r=4, use_dora=True),
    "extra": LoraConfig(
        task_type="CAUSAL_LM", target_modules=LINEAR, r=4, bias="all", modules_to_save=["norm"]
    ),
    "oft": OFTConfig(task_type="CAUSAL_LM", target_modules=LINEAR, oft_block_size=8),
    "oft-exact": OFTConfig(
        task_type="CAUSAL_LM", target_modules=LINEAR, oft_block_size=8, use_cayley_neumann=False
    ),
}
POINT = Point(step=20, alpha=0.37)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("export") / "base", dtype=request.param)


def placed(run: Run, form: AsForm) -> torch.Tensor:
    placement = Placement(run, form="attached" if form == "adapter" else "merged")
    placement.place(POINT)
    return probe(placement.model)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_stock_peft_loads_the_point_as_an_adapter(name: str, base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS[name])
    written = export(run, POINT, tmp_path / "out")
    assert written.form == "adapter"
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out")
    )
    assert torch.equal(probe(loaded.eval()), placed(run, "adapter"))


@pytest.mark.parametrize("name", ["lora", "oft", "full"])
def test_stock_transformers_loads_the_point_as_a_model(
    name: str, base: Path, tmp_path: Path
) -> None:
    if name == "full":
        run = make_full_run(tmp_path / "run", base)
    else:
        run = make_peft_run(tmp_path / "run", base, CONFIGS[name])
    export(run, POINT, tmp_path / "out", form="merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(probe(loaded), placed(run, "merged"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc")["input_ids"]


def test_lora_with_patterns_is_exported_with_one_rank_and_scaling(
    base: Path, tmp_path: Path
) -> None:
    """vLLM silently ignores rank_pattern and alpha_pattern, and reads one lora_alpha / r."""
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=LINEAR, r=4, lora_alpha=7,
        rank_pattern={"v_proj": 2, "q_proj": 3}, alpha_pattern={"down_proj": 5}, use_rslora=True,
    )  # fmt: skip
    run = make_peft_run(tmp_path / "run", base, config)
    export(run, POINT, tmp_path / "out")
    written = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert (written.rank_pattern, written.alpha_pattern, written.use_rslora) == ({}, {}, False)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    ranks = {min(shape) for shape in shapes.values()}
    assert ranks == {written.r} == {written.lora_alpha}
    original = AutoModelForCausalLM.from_pretrained(base)
    loaded = probe(PeftModel.from_pretrained(original, str(tmp_path / "out")).eval())
    allowed = 1e-6 if original.dtype == torch.float32 else 4e-3
    torch.testing.assert_close(loaded, placed(run, "adapter"), atol=allowed, rtol=allowed)
    assert "vLLM reads it too" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_vllm_does_not_read(base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["dora"])
    export(run, POINT, tmp_path / "out")
    assert "export it merged" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_names_base_point_and_command(base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["lora"])
    export(run, POINT, tmp_path / "out", command="backtrack export run out --point 20:0.37")
    card = (tmp_path / "out" / "README.md").read_text()
    for expected in (str(base), "step 20", "0.37", "backtrack export run out --point 20:0.37"):
        assert expected in card


def test_an_exported_base_is_the_base(base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["lora"])
    export(run, Point.base(), tmp_path / "out")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if "lora_B" in name]  # noqa: SIM118
        assert names
        assert all(not bool(file.get_tensor(name).any()) for name in names)


@pytest.mark.parametrize(
    ("name", "form", "num_models"),
    [("lora", "adapter", 1), ("lora", "merged", 2), ("full", "merged", 2)],
)
def test_no_model_is_loaded_beside_those_of_the_path(
    name: str, form: AsForm, num_models: int, base: Path, tmp_path: Path, loads: list[str]
) -> None:
    """A merged path has a second model that holds the adapter, or checks the last checkpoint."""
    run = make_full_run(tmp_path / "run", base) if name == "full" else lora_run(tmp_path, base)
    loads.clear()
    export(run, POINT, tmp_path / "out", form=form)
    assert len(loads) == num_models


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What transformers is asked to load, in order; shapes alone, on `meta`, do not count."""
    asked: list[str] = []
    stock = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def load(kind: Any, source: Any, *args: Any, **options: Any) -> Any:
        if options.get("device_map") != {"": torch.device("meta")}:
            asked.append(str(source))
        return stock(kind, source, *args, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load))
    return asked


def lora_run(folder: Path, base: Path) -> Run:
    return make_peft_run(folder / "run", base, CONFIGS["lora"])


@pytest.mark.parametrize("form", ["adapter", "merged"])
@pytest.mark.parametrize("spoil", ["weights", "configuration"])
def test_an_export_that_loads_as_another_model_is_refused(
    form: AsForm, spoil: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lora_run(tmp_path, base)
    save = Placement.save

    def save_spoilt(placement: Placement, folder: Path) -> None:
        save(placement, folder)
        if spoil == "weights":
            (path,) = folder.glob("*.safetensors")
            tensors = load_file(path)
            last = max(tensors)
            save_file(tensors | {last: tensors[last] * 50}, path, metadata={"format": "pt"})
        else:
            path = folder / ("adapter_config.json" if form == "adapter" else "config.json")
            field = {"lora_alpha": 99} if form == "adapter" else {"rms_norm_eps": 0.5}
            path.write_text(json.dumps(json.loads(path.read_text()) | field))

    monkeypatch.setattr(Placement, "save", save_spoilt)
    with pytest.raises(ExportError, match="Nothing was exported"):
        export(run, POINT, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["lora"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export(run, POINT, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".out*"))


def test_the_same_export_again_is_left_and_anything_else_is_refused(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, out = make_peft_run(tmp_path / "run", base, CONFIGS["lora"]), tmp_path / "out"
    first = export(run, POINT, out)
    (out / "mine.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert export(run, POINT, out) == first
    assert f"{out} has this export already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    others: list[tuple[Point, AsForm]] = [
        (POINT, "merged"),
        (Point(step=20, alpha=0.4), "adapter"),
    ]
    for point, form in others:
        with pytest.raises(UsageError, match="not empty"):
            export(run, point, out, form=form)
    retrained = make_peft_run(tmp_path / "again" / "run", base, CONFIGS["lora"], steps=(5, 20))
    with pytest.raises(UsageError, match="not empty"):
        export(retrained, POINT, out)
    with (out / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UsageError, match="not empty"):
        export(run, POINT, out)


def test_whole_models_have_no_adapter_to_export(base: Path, tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run", base)
    with pytest.raises(UsageError, match="--as merged"):
        export(run, POINT, tmp_path / "out", form="adapter")


def test_a_point_chosen_with_another_recipe_is_measured_again_too(
    base: Path, tmp_path: Path
) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["lora"])
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.yaml").write_text(
        f"name: r\nbase: {base}\nobjectives:\n"
        "  - {kind: examples, role: target, path: sums.jsonl, score: nll}\n"
        "  - {kind: examples, role: general, path: words.jsonl, score: nll}\n"
        "search: {trials: 0, checkpoints: 0, alphas: [0.5], items: {selection: 5, report: 5}}\n"
    )
    choice = select(run, recipe=load_recipe(tmp_path / "recipe.yaml"))
    assert run.recipe is None
    written = export(Run.open(run.path), choice.point, tmp_path / "out", form="merged")
    assert {m.objective.name for m in written.measured} == {"sums", "words"}
    assert "Measured again" in (tmp_path / "out" / "README.md").read_text()
    _has_results_with_intervals(tmp_path / "out" / "README.md", choice.selection)


def _has_results_with_intervals(path: Path, selection: Selection) -> None:
    """The card's metadata, as the Hub's own library reads it."""
    data = ModelCard.load(path).data
    assert data.library_name == "transformers"
    assert data.base_model is None, "a folder is not a name on the Hub"
    results = {result.dataset_name: result for result in data.eval_results or ()}
    assert set(results) == {"sums", "words"}
    row = selection.report["chosen"]
    for name, result in results.items():
        assert result.metric_value == pytest.approx(row.scores[name], abs=1e-4)
        arguments = result.metric_args or {}
        low, high = arguments["interval_95"]
        assert low <= result.metric_value <= high
        assert (arguments["items"], arguments["base"]) == (
            5,
            pytest.approx(selection.report["base"].scores[name], abs=1e-4),
        )


def test_the_card_names_a_base_on_the_hub_and_its_relation(base: Path, tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", base, CONFIGS["lora"])
    reference = run.base.model_copy(update={"model": "Qwen/Qwen2.5-7B"})
    run.manifest = run.manifest.model_copy(update={"base": reference})
    data = ModelCard(Card(run, POINT, "adapter").text()).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen2.5-7B"
    assert data["base_model_relation"] == "adapter"
    assert data["tags"] == ["backtrack", "lora"]
    assert data["pipeline_tag"] == "text-generation"
