"""Runs that others wrote are taken over as they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.records.record import short_digest
from backtrack.run.adopt import adopt
from backtrack.run.adoption.refreshing import refresh
from backtrack.run.bits import bits_of
from backtrack.run.checkpoint_reader import base_folder, read_checkpoint
from backtrack.run.checkpoint_writer import describe_checkpoint
from backtrack.run.coded_chain import write_coded
from backtrack.run.directory import Run
from tests.models import jitter, make_base

pytestmark = pytest.mark.filterwarnings("ignore")

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("adopt") / "base")


def save(folder: Path, base: Path, *, is_peft: bool, seed: int = 1) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if is_peft:
        model = get_peft_model(model, LORA)
    jitter(model, 0.02, seed=seed)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("is_peft", [True, False])
def test_checkpoint_folders_become_a_run_by_reference(
    base: Path, tmp_path: Path, is_peft: bool
) -> None:
    for step in (5, 10, 100):
        save(tmp_path / "out" / f"checkpoint-{step}", base, is_peft=is_peft, seed=step)
    before = sorted((tmp_path / "out").rglob("*"))
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    assert run.path == tmp_path / "runs" / "out"
    assert run.steps == (5, 10, 100)
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert not list(run.path.rglob("*.safetensors"))
    Placement(run).place(Point(step=10, alpha=0.5))


@pytest.mark.parametrize("is_peft", [True, False])
def test_one_adapter_or_model_is_a_run_of_one_step(
    base: Path, tmp_path: Path, is_peft: bool
) -> None:
    folder = save(tmp_path / "tuned", base, is_peft=is_peft)
    run = adopt(folder, base=str(base), runs=tmp_path / "runs")
    assert run.steps == (1,)
    assert run.manifest.method.kind == ("lora" if is_peft else "full")
    Placement(run).place(Point(step=1, alpha=0.5))


def test_adopting_again_takes_what_has_come_since(base: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / "checkpoint-5", base, is_peft=True)
    adopt(tmp_path / "out", runs=tmp_path / "runs")
    save(tmp_path / "out" / "checkpoint-10", base, is_peft=True, seed=2)
    adopt(tmp_path / "out", runs=tmp_path / "runs")
    assert Run.open(tmp_path / "runs" / "out").steps == (5, 10)


@pytest.mark.parametrize("content", [b'{"r": ', b"null", b"[" * 3000, b"\xef\xbb\xbf{}"])
def test_damaged_json_of_a_checkpoint_is_named(
    base: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "tuned", base, is_peft=True)
    (folder / "trainer_state.json").write_bytes(content)
    run = adopt(folder, base=str(base), runs=tmp_path / "runs")
    assert run.entry(1).train_loss is None
    assert "trainer_state.json is damaged" in caplog.text
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"adapter_config\.json is damaged"):
        adopt(folder, base=str(base), runs=tmp_path / "runs")


def test_a_checkpoint_cut_short_is_left_out_and_named(base: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / "checkpoint-5", base, is_peft=True)
    broken = (
        save(tmp_path / "out" / "checkpoint-10", base, is_peft=True) / "adapter_model.safetensors"
    )
    broken.write_bytes(broken.read_bytes()[:200])
    skipped: list[str] = []
    run = adopt(tmp_path / "out", runs=tmp_path / "runs", on_skip=skipped.append)
    assert run.steps == (5,)
    assert len(skipped) == 1
    assert str(broken) in skipped[0]


def test_whole_models_without_a_named_base_ask_for_it(base: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / "checkpoint-5", base, is_peft=False)
    with pytest.raises(UsageError, match="--base"):
        adopt(tmp_path / "out", runs=tmp_path / "runs")


def test_models_of_another_shape_than_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", width=64)
    save(tmp_path / "out" / "checkpoint-5", wide, is_peft=False)
    with pytest.raises(RunError, match="shape"):
        adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")


def test_a_checkpoint_in_fp32_over_a_base_in_bf16_is_kept_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_base(tmp_path / "base", dtype="bfloat16")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "tuned")
    adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs")
    assert "rounded to bfloat16" in caplog.text
    with pytest.raises(RunError, match="was adopted with dtype auto"):
        adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "runs", dtype="float32")
    caplog.clear()
    wide = adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "wide", dtype="float32")
    assert "rounded" not in caplog.text
    placement = Placement(wide, device="cpu")
    placement.place(wide.final)
    assert torch.equal(probe(placement.model), probe(model.eval()))
    adopt(tmp_path / "tuned", base=str(base), runs=tmp_path / "wide")  # as it was adopted


def test_an_empty_folder_says_what_was_looked_for(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="checkpoint-"):
        adopt(tmp_path, base=str(base), runs=tmp_path / "runs")
    with pytest.raises(RunError, match="not a folder"):
        adopt(tmp_path / "nothing", base=str(base))


def test_a_name_taken_by_another_source_is_refused(base: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        save(tmp_path / parent / "out" / "checkpoint-5", base, is_peft=True)
    adopt(tmp_path / "a" / "out", runs=tmp_path / "runs")
    with pytest.raises(RunError, match="--name"):
        adopt(tmp_path / "b" / "out", runs=tmp_path / "runs")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(RunError, match="is missing"):
        Run.open(tmp_path / "runs" / "out").folder(5)


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A model of the Hub's cache: its snapshot folders by revision."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    folders = {}
    for seed, revision in enumerate(("main", "pinned", "other")):
        commit = str(seed) * 40
        (repository / "refs" / revision).write_text(commit)
        folders[revision] = make_base(repository / "snapshots" / commit, seed=seed)
    return folders


def save_pinned(folder: Path, base: Path, **fields: Any) -> Path:
    """An adapter trained on the base, whose configuration names it by its Hub name."""
    save(folder, base, is_peft=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "org/tiny"} | fields
    path.write_text(json.dumps(config))
    for file in base.glob("token*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    ("fields", "revision"),
    [({"revision": "pinned"}, "pinned"), ({"revision": "1" * 40}, "pinned"), ({}, "main")],
)
def test_the_base_is_taken_at_the_revision_of_the_adapters_configuration(
    on_hub: dict[str, Path], tmp_path: Path, fields: dict[str, Any], revision: str
) -> None:
    folder = save_pinned(tmp_path / "tuned", on_hub[revision], **fields)
    run = adopt(folder, runs=tmp_path / "runs")
    assert run.base.revision == fields.get("revision")
    assert base_folder(run.base) == on_hub[revision]
    placement = Placement(Run.open(run.path))
    placement.place(Point.base())
    stock = AutoModelForCausalLM.from_pretrained(on_hub[revision])
    assert torch.equal(probe(placement.model), probe(stock))


def test_a_named_base_and_a_recipes_revision_come_before_the_adapters(
    on_hub: dict[str, Path], tmp_path: Path
) -> None:
    folder = save_pinned(tmp_path / "tuned", on_hub["pinned"], revision="pinned")
    local = adopt(folder, base=str(on_hub["other"]), name="a", runs=tmp_path / "runs")
    assert (local.base.model, local.base.revision) == (str(on_hub["other"]), None)
    named = adopt(folder, base="org/tiny", name="b", runs=tmp_path / "runs")
    assert named.base.revision == "pinned"
    recipe = Recipe.model_validate(
        {"name": "c", "base": {"model": "org/tiny", "revision": "other"}}
    )
    assert adopt(folder, recipe=recipe, name="c", runs=tmp_path / "runs").base.revision == "other"


@pytest.mark.parametrize("is_peft", [True, False])
def test_a_checkpoint_that_was_retrained_in_place_is_named_and_gets_another_digest(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_peft: bool
) -> None:
    for step in (5, 10):
        save(tmp_path / "out" / f"checkpoint-{step}", base, is_peft=is_peft, seed=step)
    run = adopt(tmp_path / "out", base=str(base), runs=tmp_path / "runs")
    before = run.checkpoint_digests()
    for path in (tmp_path / "out" / "checkpoint-5").iterdir():
        path.touch()
    save(tmp_path / "out" / "checkpoint-10", base, is_peft=is_peft, seed=77)
    refresh(run)
    assert "the checkpoint of step 10 changed" in caplog.text
    after = Run.open(run.path).checkpoint_digests()
    assert after[5] == before[5]
    assert after[10] != before[10]
    Placement(Run.open(run.path)).place(Point(step=10, alpha=0.5))
    size = (run.trajectory / "index.jsonl").stat().st_size
    refresh(Run.open(run.path))
    assert (run.trajectory / "index.jsonl").stat().st_size == size


def set_alpha(folder: Path, lora_alpha: int) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": lora_alpha}))


def test_another_lora_alpha_in_the_same_weights_is_another_checkpoint(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "tuned", base, is_peft=True)
    run = adopt(folder, base=str(base), runs=tmp_path / "runs")
    (before,) = run.checkpoint_digests().values()
    set_alpha(folder, 99)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json was changed"):
        read_checkpoint(run, 1)
    refresh(run)
    assert "the checkpoint of step 1 changed" in caplog.text
    assert run.checkpoint_digests()[1] != before
    Placement(Run.open(run.path)).place(Point(step=1, alpha=0.5))


def test_a_manifest_has_names_in_order_however_peft_wrote_them(base: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "tuned", base, is_peft=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_modules": ["v_proj", "q_proj"]}
    path.write_text(json.dumps(config))
    run = adopt(folder, base=str(base), runs=tmp_path / "runs")
    assert run.manifest.method.settings["target_modules"] == ["q_proj", "v_proj"]


def test_an_index_of_an_earlier_version_keeps_its_digests(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "tuned", base, is_peft=True)
    run = adopt(folder, base=str(base), runs=tmp_path / "runs")
    index = run.trajectory / "index.jsonl"
    entry = json.loads(index.read_text())
    assert entry.pop("config")
    index.write_text(json.dumps(entry) + "\n")
    before = Run.open(run.path).checkpoint_digests()
    assert before == {1: short_digest(entry["sha256"])}
    again = adopt(folder, base=str(base), runs=tmp_path / "runs")
    refresh(again)
    assert again.checkpoint_digests() == before
    assert read_checkpoint(again, 1)
    assert "changed since" not in caplog.text


def test_recoding_a_checkpoint_keeps_its_digest(tmp_path: Path) -> None:
    values = torch.arange(4096, dtype=torch.bfloat16)
    bits, other = ({"w": bits_of(tensor)} for tensor in (values, values + 3))
    for name, reference in (("key", None), ("delta", (1, other))):
        (tmp_path / name).mkdir()
        write_coded(tmp_path / name, bits, reference, {})
    key, delta = (describe_checkpoint(tmp_path / n, 2, folder=n) for n in ("key", "delta"))
    assert key.sha256 != delta.sha256
    assert key.digest == delta.digest
    (tmp_path / "other").mkdir()
    write_coded(tmp_path / "other", other, None, {})
    assert describe_checkpoint(tmp_path / "other", 2, folder="other").digest != key.digest
