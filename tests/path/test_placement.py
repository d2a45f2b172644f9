"""What users rely on when a model is placed at a point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from backtrack.errors import (
    BacktrackError,
    CheckpointError,
    PlacementError,
    PointError,
    RunError,
    UsageError,
)
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import (
    jitter,
    make_base,
    make_full_run,
    make_manifest,
    make_peft_run,
    make_tokenizer,
)
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")


def config_of(name: str) -> Any:
    return configs()[name]


def stock(run: Run, step: int) -> torch.Tensor:
    """Logits of a checkpoint as a user without backtrack would load it."""
    base = AutoModelForCausalLM.from_pretrained(run.base.model)
    return probe(PeftModel.from_pretrained(base, str(run.folder(step))).eval())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        dtype: make_base(folder / dtype, dtype=dtype)
        for dtype in ("float32", "bfloat16", "float16")
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_both_ends_of_full_fine_tuning_are_exact(
    dtype: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    run = make_full_run(tmp_path / "run", bases[dtype])
    placement = Placement(run)
    assert (placement.form, placement.curve) == ("merged", "line")
    base = AutoModelForCausalLM.from_pretrained(bases[dtype])
    trained = {s: AutoModelForCausalLM.from_pretrained(run.folder(s)) for s in run.steps}
    for step, alpha in (
        (20, 0.4),
        (10, 1.0),
        (10, 0.0),
        (20, 1.0),
        (20, 0.6),
        (10, 0.2),
        (20, 1.0),
    ):
        placement.place(Point(step=step, alpha=alpha))
        if alpha in {0.0, 1.0}:
            expected = base if alpha == 0 else trained[step]
            assert torch.equal(probe(placement.model), probe(expected))


def test_a_lora_point_is_the_line_between_base_and_merged_weights(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("lora"))
    base = AutoModelForCausalLM.from_pretrained(bases["float32"])
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bases["float32"]), str(run.folder(20))
    ).merge_and_unload()
    for mine, theirs in zip(base.parameters(), merged.parameters(), strict=True):
        mine.data = mine.data + 0.35 * (theirs.data - mine.data)
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.35))
    torch.testing.assert_close(probe(placement.model), probe(base), atol=1e-5, rtol=0)


def test_an_oft_point_scales_the_generator_by_the_root_of_alpha(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("oft"))
    tensors = load_file(run.folder(20) / "adapter_model.safetensors")
    scaled = tmp_path / "scaled"
    scaled.mkdir()
    save_file({n: t * 0.36**0.5 for n, t in tensors.items()}, scaled / "adapter_model.safetensors")
    (scaled / "adapter_config.json").write_text(
        (run.folder(20) / "adapter_config.json").read_text()
    )
    base = AutoModelForCausalLM.from_pretrained(bases["float32"])
    placement = Placement(run)
    placement.place(Point(step=20, alpha=0.36))
    by_hand = probe(PeftModel.from_pretrained(base, str(scaled)).eval())
    torch.testing.assert_close(probe(placement.model), by_hand, atol=1e-6, rtol=0)


def test_the_line_of_a_rotation_is_another_path_than_its_native_curve(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("oft"))
    native, dense = Placement(run), Placement(run, form="merged", curve="line")
    for placement in (native, dense):
        placement.place(Point(step=20, alpha=0.5))
    assert float((probe(native.model) - probe(dense.model)).abs().max()) > 1e-3


def test_distance_grows_with_alpha_and_is_zero_at_the_base(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("lora", "oft", "full"):
        folder = tmp_path / kind
        run = (
            make_full_run(folder, bases["float32"])
            if kind == "full"
            else make_peft_run(folder, bases["float32"], config_of(kind))
        )
        placement = Placement(run)
        distances = [placement.distance(Point(step=20, alpha=a)) for a in (0.0, 0.25, 0.5, 1.0)]
        assert distances[0] == 0
        assert distances == sorted(set(distances))


def test_an_unknown_step_lists_the_known_steps(bases: dict[str, Path], tmp_path: Path) -> None:
    placement = Placement(make_peft_run(tmp_path / "run", bases["float32"], config_of("lora")))
    with pytest.raises(PointError, match="10, 20"):
        placement.place(Point(step=15, alpha=0.5))
    with pytest.raises(PointError, match="profile"):
        placement.place(Point(step=20, alpha=0.5, profile="wavy"))


def test_a_form_and_a_curve_that_do_not_go_together_are_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    full = make_full_run(tmp_path / "full", bases["float32"])
    with pytest.raises(UsageError, match="whole model"):
        Placement(full, form="attached")
    rotation = make_peft_run(tmp_path / "oft", bases["float32"], config_of("oft"))
    with pytest.raises(UsageError, match="native curve"):
        Placement(rotation, form="attached", curve="line")


def refusal(run: Run) -> BacktrackError:
    with pytest.raises(BacktrackError) as caught:
        Placement(run)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_base_changed_after_training_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    run = make_peft_run(tmp_path / "run", base, config_of("lora"))
    make_base(base, seed=1)
    error = refusal(run)
    assert isinstance(error, RunError)
    assert "--base" in str(error)


def test_an_adapter_for_another_model_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", width=64)
    run = make_peft_run(tmp_path / "run", wide, config_of("lora"))
    other = Run.create(tmp_path / "other", make_manifest(bases["float32"], "lora"))
    write_checkpoint(other, 1, lambda path: copy_files(run.folder(20), path))
    error = refusal(other)
    assert isinstance(error, PlacementError)
    assert "another base" in str(error)


def copy_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


def test_a_module_that_an_adapter_names_is_not_imported(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_by_adapter.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("lora"))
    path = run.folder(20) / "adapter_config.json"
    own = json.loads(path.read_text())
    megatron = {
        "megatron_config": {"sequence_parallel": True},
        "megatron_core": "named_by_adapter",
    }
    path.write_text(json.dumps(own | megatron))
    assert "megatron_core" in str(refusal(run))
    named = {"base_model_class": "LlamaForCausalLM", "parent_library": "named_by_adapter"}
    path.write_text(json.dumps({**own, "task_type": None, "auto_mapping": named}))
    Placement(run, device="cpu").place(run.final)


def test_a_prompt_tuning_adapter_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    run = make_peft_run(tmp_path / "run", bases["float32"], config)
    assert "PROMPT_TUNING" in str(refusal(run))


def test_nan_weights_are_refused_and_the_tensor_named(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", make_manifest(bases["float32"], "lora"))
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(bases["float32"]), config_of("lora")
    )
    jitter(model, float("nan"), seed=0)
    write_checkpoint(run, 5, lambda path: model.save_pretrained(str(path)))
    error = refusal(run)
    assert isinstance(error, CheckpointError)
    assert "lora_A" in str(error)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named(
    damage: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("lora"))
    path = run.folder(20) / "adapter_model.safetensors"
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            content[:-100] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1])
        )
    assert str(path) in str(refusal(run))


def test_pickled_weights_are_never_read(bases: dict[str, Path], tmp_path: Path) -> None:
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("lora"))
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        (run.folder(20) / "adapter_config.json").read_text()
    )
    torch.save(
        load_file(run.folder(20) / "adapter_model.safetensors"), folder / "adapter_model.bin"
    )
    from backtrack.run.adopt import adopt

    with pytest.raises(RunError, match="pickled"):
        adopt(folder, base=str(bases["float32"]), runs=tmp_path / "runs")


@pytest.mark.parametrize("form", ["attached", "merged"])
def test_lora_on_mamba_is_exact_though_it_computes_otherwise_with_gradients(
    form: Literal["attached", "merged"], tmp_path: Path
) -> None:
    config = MambaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, state_size=8, num_hidden_layers=2
    )
    base = tmp_path / "base"
    torch.manual_seed(0)
    MambaForCausalLM(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["x_proj", "in_proj"], r=4)
    run = make_peft_run(tmp_path / "run", base, lora)
    placement = Placement(run, form=form, device="cpu")
    placement.place(run.final)
    atol = 0.0 if form == "attached" else 1e-5
    assert torch.allclose(probe(placement.model), stock(run, 20), atol=atol, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_mapping": {"base_model_class": "Model", "parent_library": "trap"}},
        {"megatron_config": {"hidden_size": 32}, "megatron_core": "trap"},
    ],
)
def test_a_class_that_an_adapters_configuration_names_is_not_imported(
    bases: dict[str, Path], fields: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = make_peft_run(tmp_path / "run", bases["float32"], config_of("lora"))
    path = run.folder(20) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if "auto_mapping" in fields:
        Placement(run)
    else:
        assert "megatron_core" in str(refusal(run))
