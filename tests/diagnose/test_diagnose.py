"""Diagnose real runs: agreement with NumPy, resuming, refusals, memory, figures."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from backtrack.cli import app
from backtrack.diagnose import memory
from backtrack.diagnose.diagnose import diagnose
from backtrack.diagnose.diagnoser import Options
from backtrack.diagnose.modules import LinearModule, choose, linear_modules, locations
from backtrack.errors import PlacementError, UsageError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import ClusterSection
from backtrack.records import Role
from backtrack.records.diagnosis import Diagnosis, ModuleGeometry
from backtrack.report.geometry.figures import write_figures
from backtrack.run.directory import Run
from backtrack.run.files import read_lines, read_record
from tests.diagnose import independent
from tests.models import make_base, make_full_run, make_peft_run, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4),
    "dora": lambda: LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=4, use_dora=True
    ),
    "oft": lambda: OFTConfig(task_type="CAUSAL_LM", target_modules="all-linear", oft_block_size=8),
}
TEXTS: dict[Role, list[str]] = {
    "target": ["3 + 4 = 7", "12 - 5 is 7", "add 9 to 10"],
    "general": ["the cat sat on a mat", "which is the third?", "name a colour", "ok"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("prompts")
    files: dict[Role, Path] = {}
    for role, texts in TEXTS.items():
        files[role] = folder / f"{role}.txt"
        files[role].write_text("\n".join(texts) + "\n")
    return Options(prompts=files)


def run_of(kind: str, base: Path, folder: Path) -> Run:
    if kind == "full":
        return make_full_run(folder, base)
    return make_peft_run(folder, base, CONFIGS[kind]())


def activations(model: Any, module: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs of a module, one row for each token; each prompt is run alone."""
    tokenizer = make_tokenizer()
    inputs, outputs = [], []

    def store(_module, args, out):
        inputs.append(args[0][0])
        outputs.append(out[0])

    hook = model.get_submodule(module).register_forward_hook(store)
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    hook.remove()
    return torch.cat(inputs).numpy(), torch.cat(outputs).numpy()


def merged(run: Run, base: Path) -> Any:
    """The final checkpoint as PEFT merges it."""
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    if run.manifest.method.kind == "full":
        return AutoModelForCausalLM.from_pretrained(run.folder(run.final.step))
    tuned: Any = PeftModel.from_pretrained(plain, str(run.folder(run.final.step)))
    return tuned.merge_and_unload()


@pytest.mark.parametrize("kind", ["lora", "dora", "oft", "full"])
def test_a_diagnosis_agrees_with_whole_matrices_in_numpy(kind, base, options, tmp_path):
    run = run_of(kind, base, tmp_path / "run")
    found = diagnose(run, options=options)
    stock: Any = AutoModelForCausalLM.from_pretrained(base)
    tuned = merged(run, base)
    lines = {line.module: line for line in found.lines if line.point == run.final}
    assert len(lines) == 14, "every linear module of two blocks, without the head"
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        line = lines[module]
        both = (m.get_submodule(module).weight.detach().numpy() for m in (stock, tuned))
        weights = next(both), next(both)
        update = weights[1].astype(float) - weights[0]
        assert line.update_norm == pytest.approx(np.linalg.norm(update), rel=1e-3)
        expected = independent.spectrum(*weights)
        assert line.spectrum is not None
        rank = float(expected["effective_rank"])
        assert line.spectrum.effective_rank == pytest.approx(rank, rel=2e-2)
        for role, texts in TEXTS.items():
            inputs, _ = activations(stock, module, texts)
            for name, value in independent.drift(*weights, inputs).items():
                assert getattr(line.drift[role], name) == pytest.approx(value, rel=1e-3), name
    for line in (lines[module] for module in found.diagnosis.locations.values()):
        starts, ends = (activations(m, line.module, TEXTS["general"])[1] for m in (stock, tuned))
        for name, value in independent.geometry(starts, ends).items():
            got = getattr(line.activations["general"], name)
            assert got == pytest.approx(value, rel=2e-3, abs=1e-6), (line.module, name)


def test_along_a_path_strength_is_alpha_and_drift_its_square(base, options, tmp_path):
    run = run_of("lora", base, tmp_path / "run")
    found = diagnose(run, options=options)
    full = {line.module: line for line in found.lines if line.point == run.final}
    half = [line for line in found.lines if line.point == Point(step=20, alpha=0.4)]
    assert len(half) == len(full)
    for line in half:
        whole = full[line.module]
        assert line.strength == pytest.approx(0.4 * whole.strength, rel=1e-3)
        for role in ("target", "general"):
            relative = line.drift[role].relative
            assert relative == pytest.approx(0.16 * whole.drift[role].relative, rel=1e-2)
            normed = whole.drift[role].update_normed
            assert line.drift[role].update_normed == pytest.approx(normed, rel=1e-2)
        assert line.spectrum is None


def quantized(run: Run) -> Run:
    """The run as if it had been trained on a base of 4 bits."""
    base = run.base.model_copy(update={"quantization": "4bit"})
    manifest = run.manifest.model_copy(update={"base": base})
    (run.path / "manifest.json").write_text(manifest.model_dump_json())
    return Run.open(run.path)


def test_lora_on_a_quantized_base_is_compared_with_what_the_base_computes_with(options, tmp_path):
    base = make_base(tmp_path / "base", width=64)
    run = quantized(run_of("lora", base, tmp_path / "run"))
    found = diagnose(run, options=options)
    name = "model.layers.1.mlp.down_proj"
    line = next(ln for ln in found.lines if ln.module == name and ln.point == run.final)
    tensors = load_file(run.folder(20) / "adapter_model.safetensors")
    down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    scaling = 8 / 4  # lora_alpha is 8 unless it is given
    assert line.update_norm == pytest.approx(float(scaling * (up @ down).norm()), rel=1e-4)
    dora = quantized(run_of("dora", base, tmp_path / "dora"))
    with pytest.raises(PlacementError, match="quantizing it again"):
        diagnose(dora, options=options)


def test_a_second_diagnosis_reuses_recorded_lines(base, options, tmp_path):
    run = run_of("lora", base, tmp_path / "run")
    file = run.path / "diagnosis.jsonl"
    first = diagnose(run, options=options)
    lines = file.read_text().splitlines()
    # As after a kill: the last module's lines are missing, the first of them is cut short.
    num_points = len({line.point for line in first.lines})
    file.write_text("\n".join(lines[:-num_points]) + "\n" + lines[-num_points][:40])
    done: list[str] = []
    second = diagnose(run, options=options, on_progress=lambda _d, _t, what: done.append(what))
    assert done == ["activations", first.diagnosis.modules[-1]]
    same = {"seconds": 0.0}
    assert [ln.model_copy(update=same) for ln in second.lines] == [
        ln.model_copy(update=same) for ln in first.lines
    ]
    assert read_record(run.path / "diagnosis.json", Diagnosis) == second.diagnosis
    assert len({line.setting for line in read_lines(file, ModuleGeometry)}) == 1


@pytest.mark.ray
def test_two_actors_give_the_lines_of_one_process(base, options, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # for the actors
    run = run_of("lora", base, tmp_path / "run")
    alone = diagnose(run, options=options).lines
    file = run.path / "diagnosis.jsonl"
    kept = file.read_text().splitlines()[: len({line.point for line in alone})]
    file.write_text("\n".join(kept) + "\n")
    cluster = ClusterSection(actors=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    done: list[str] = []
    found = diagnose(
        run,
        options=replace(options, cluster=cluster),
        on_progress=lambda _d, _t, what: done.append(what),
    )
    names = [module for module in found.diagnosis.modules if module != alone[0].module]
    assert sorted(done[1:]) == sorted(names)
    assert [(line.point, line.module) for line in found.lines] == [
        (line.point, line.module) for line in alone
    ]
    for one, other in zip(found.lines, alone, strict=True):
        assert one.setting == other.setting
        assert one.update_norm == pytest.approx(other.update_norm, rel=1e-5)
        assert one.activations.keys() == other.activations.keys()
        assert one.drift.keys() == other.drift.keys()


def test_small_memory_gives_the_same_lines(base, options, tmp_path, monkeypatch):
    run = run_of("oft", base, tmp_path / "run")
    whole = diagnose(run, options=options).lines
    (run.path / "diagnosis.jsonl").unlink()
    monkeypatch.setattr(memory, "budget_bytes", lambda _device: 1)
    parts = diagnose(run, options=options).lines
    same = {"seconds": 0.0}
    for one, other in zip(whole, parts, strict=True):
        assert one.model_copy(update=same) == other.model_copy(update=same)


def test_prompts_come_from_the_objectives_and_forgetting_from_the_selection(base, tmp_path):
    from backtrack.recipe import ChoosingRecipe, load_recipe
    from backtrack.selection.choice.select import select

    for name, texts in TEXTS.items():
        rows = [{"prompt": text, "completion": f" {len(text)}"} for text in texts * 5]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prose.txt").write_text("it was a cold day, and the clock struck. " * 20)
    (tmp_path / "recipe.yaml").write_text(
        f"name: tiny\nbase: {base}\nobjectives:\n"
        "  - {kind: examples, role: target, path: target.jsonl, score: nll}\n"
        "  - {kind: examples, role: general, path: general.jsonl, score: nll}\n"
        "  - {kind: text, role: general, path: prose.txt, window_tokens: 16}\n"
        "  - {kind: divergence}\n"
        "search: {trials: 0, alphas: [0.3, 0.6, 0.9], checkpoints: 1,"
        " items: {selection: 6, report: 6}}\n"
    )
    run = run_of("lora", base, tmp_path / "run")
    run.choose_by(ChoosingRecipe(recipe=load_recipe(tmp_path / "recipe.yaml")))
    selection = select(run).selection
    found = diagnose(run, options=Options(num_prompts=8)).diagnosis
    far = [m for m in run.measurements() if m.objective.name == "divergence"]
    assert {m.split for m in far} == {"selection", "report"}
    assert all((set(m.scores) == {0.0}) == m.point.is_base for m in far)
    sources = {source.role: source for source in found.prompts}
    assert (sources["general"].source, sources["general"].num_prompts) == ("general, prose", 8)
    measured = {f.point: f.forgetting for f in found.forgetting}
    whole = {c.point for c in selection.candidates if c.share == 1 and not c.point.is_base}
    assert set(measured) == whole
    general = {c.point: c.general for c in selection.candidates}
    assert measured[run.final] == pytest.approx(general[Point.base()] - general[run.final])
    strength = next(c for c in found.correlations if c.metric == "strength")
    assert (strength.num, strength.over, strength.role) == (len(measured), "points", None)
    roles = {c.role for c in found.correlations if c.metric == "divergence"}
    assert roles == {"target", "general"}
    final = next(f for f in found.forgetting if f.point == run.final)
    expected = mean_divergence(Placement(run), run.final, _target_prompts(run))
    assert final.metrics["divergence/target"] == pytest.approx(expected, abs=1e-5)


def _target_prompts(run: Run) -> list[str]:
    """The prompts that a diagnosis of eight draws."""
    assert run.choosing is not None
    from backtrack.diagnose.prompts import find_prompts

    placement = Placement(run)
    target, _ = find_prompts(run.choosing.recipe, {}, placement, 8, 0)
    return [placement.tokenizer.decode(ids) for ids in target.ids]


@torch.no_grad()
def mean_divergence(placement: Placement, point: Point, texts: list[str]) -> float:
    """KL(base || point) in nats, mean over the tokens of prompts that are read one by one."""
    rows = [torch.tensor([placement.tokenizer(text)["input_ids"]]) for text in texts]
    found: list[torch.Tensor] = []
    for row in rows:
        logs = []
        for each in (Point.base(), point):
            placement.place(each)
            logs.append(placement.model(row).logits[0].double().log_softmax(-1))
        found.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1))
    return float(torch.cat(found).mean())


def test_names_of_modules_and_what_is_refused(base, options, tmp_path):
    run = run_of("lora", base, tmp_path / "run")
    placement = Placement(run)
    available = linear_modules(placement.model)
    paths = locations(available)
    assert paths["late.mlp"] == "model.layers.1.mlp.down_proj"
    assert paths["first.attention"] == "model.layers.0.self_attn.o_proj"
    assert len(paths) == 8
    assert [m.name for m in choose(available, ["*.0.mlp.up_proj", "last.mlp"])] == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    ]
    with pytest.raises(UsageError, match=r"late\.mpl.*Did you mean 'late\.mlp'"):
        choose(available, ["late.mpl"])
    with pytest.raises(UsageError, match="--prompts target=FILE"):
        diagnose(run, placement=placement)
    found = diagnose(
        run, options=Options(["*.mlp.*"], ["last.mlp"], options.prompts), placement=placement
    )
    assert found.diagnosis.locations == {"last.mlp": "model.layers.1.mlp.down_proj"}
    assert {line.part for line in found.lines} == {"mlp"}


def test_the_command_prints_tables_or_json_and_refuses_what_it_cannot_read(
    base, options, tmp_path, capsys
):
    run = run_of("lora", base, tmp_path / "run")
    files = [f"--prompts={role}={path}" for role, path in options.prompts.items()]
    points = ["--point", "10:0.5", "--point", "20:0.5:depth(0.5,1)"]
    arguments = ["diagnose", str(run.path), "--no-path", *points, *files, "--quiet"]
    app(args=arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    for word in ("step 10 alpha 0.5", "Procrustes", "block", "geometry-profiles.png"):
        assert word in printed, word
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    app(args=[*arguments, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert {line["module"] for line in found["lines"]} == set(found["modules"])
    for wrong in ("general", "general=nowhere.txt", "both=x.txt"):
        with pytest.raises(UsageError, match="target=FILE or general=FILE"):
            app(args=["diagnose", str(run.path), f"--prompts={wrong}"], standalone_mode=False)


def test_figures_are_drawn(base, options, tmp_path, caplog):
    run = run_of("dora", base, tmp_path / "run")
    found = diagnose(run, options=options)
    with caplog.at_level(logging.WARNING):
        files = write_figures(run.path, found.diagnosis, found.lines)
    names = {path.name for path in files}
    assert {"geometry-profiles.png", "geometry-drift.png", "geometry-path.png"} <= names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in files)


def test_paper8_are_the_release_s_modules():
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    every = [
        LinearModule(f"model.layers.{block}.{part}", None, (1, 1))
        for block in range(28)
        for part in (*parts, "mlp.up_proj", "mlp.down_proj")
    ]
    assert [module.name.removeprefix("model.layers.") for module in choose(every, ["paper8"])] == [
        f"{block}.{part}" for block in (9, 18) for part in (*parts[:3], "mlp.down_proj")
    ]
    with pytest.raises(UsageError, match=r"no linear module matches '\*\.18\.\*q_proj'"):
        choose(every[:60], ["paper8"])
