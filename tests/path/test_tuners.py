"""Every method of PEFT: its path, its ends, its export, or the reason why it has no path."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType, PrefixTuningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from backtrack.errors import PlacementError, UsageError
from backtrack.exporter import export
from backtrack.path.adapters.tuners import MAX_ATTACHED_COST, NO_PATH, TUNERS, tuner_of
from backtrack.path.curves import rounding
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = list(configs())
NATIVE = [name for name, config in configs().items() if not tuner_of(config).why_line_only]
UNMERGED = {"lily", "lora-own-bias", "beft-no-bias"}
"""Adapters that PEFT cannot merge: input-dependent, or with a bias that the base lacks."""
MERGED = [name for name in NAMES if name not in UNMERGED]
DTYPES = ("float32", "bfloat16", "float16")
EXTRA_PARAMETERS = {
    "lora-bias",
    "lora-modules",
    "lora-tokens",
    "lora-embedding",
    "lora-head",
    "tokens",
}
NOT_LINEAR = EXTRA_PARAMETERS | {"ln-tuning", "beft"}


class Workshop:
    """Runs and logits of each tuner, cached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bases = {d: make_base(folder / d, dtype=d) for d in DTYPES}
        self._runs: dict[tuple[str, str], Run] = {}
        self._attached: dict[str, Placement] = {}
        self._base_logits: dict[str, torch.Tensor] = {}

    def base(self, dtype: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._bases[dtype]).eval()

    def run(self, name: str, dtype: str = "float32") -> Run:
        if (name, dtype) not in self._runs:
            torch.manual_seed(0)
            path = self.folder / f"run-{name}-{dtype}"
            self._runs[name, dtype] = make_peft_run(path, self._bases[dtype], configs()[name])
        return self._runs[name, dtype]

    def attached(self, name: str) -> Placement:
        if name not in self._attached:
            self._attached[name] = Placement(self.run(name), form="attached")
        return self._attached[name]

    def base_logits(self, dtype: str) -> torch.Tensor:
        if dtype not in self._base_logits:
            self._base_logits[dtype] = probe(self.base(dtype))
        return self._base_logits[dtype]

    def stock(self, name: str, dtype: str, folder: Path) -> torch.Tensor:
        return probe(PeftModel.from_pretrained(self.base(dtype), str(folder)).eval())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("tuners"))


def test_every_type_of_peft_has_a_path_or_a_reason_why_not() -> None:
    every = set(PEFT_TYPE_TO_CONFIG_MAPPING) | set(PeftType)
    assert every == set(TUNERS) | set(NO_PATH)
    assert not set(TUNERS) & set(NO_PATH)
    assert all(len(reason.split()) > 5 for reason in NO_PATH.values())


def test_every_tuner_has_handles_or_a_reason_to_move_on_the_line_only() -> None:
    for tuner in TUNERS.values():
        assert bool(tuner.rules) != bool(tuner.why_line_only)


def test_every_type_with_a_path_is_tested_here() -> None:
    assert {PeftType(config.peft_type) for config in configs().values()} == set(TUNERS)


@pytest.mark.parametrize("kind", sorted(NO_PATH))
def test_a_method_without_a_path_is_refused_by_name(kind: PeftType) -> None:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__new__(PEFT_TYPE_TO_CONFIG_MAPPING[kind])
    config.peft_type = kind
    with pytest.raises(PlacementError, match=kind.value):
        tuner_of(config)


def test_a_prefix_run_is_refused_when_it_is_opened(workshop: Workshop, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    run = make_peft_run(tmp_path / "run", workshop.folder / "float32", config)
    with pytest.raises(PlacementError, match="PREFIX_TUNING"):
        Placement(run)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in NAMES for dtype in ("float32", "bfloat16")),
        *((name, "float16") for name in ("lora", "lora-dora", "oft", "boft", "hra-odd", "vera")),
    ],
)
def test_both_ends_are_exact_after_fifty_visits_in_any_order(
    name: str, dtype: str, workshop: Workshop
) -> None:
    run = workshop.run(name, dtype)
    placement = Placement(run)
    visits = random.Random(name)
    highest = 1.0 if name == "oft-coft" else 1.6
    for _ in range(50):
        alpha = visits.choice([0.0, 1.0, visits.uniform(0, highest)])
        placement.place(Point(step=visits.choice(run.steps), alpha=alpha))
    base = workshop.base_logits(dtype)
    for step in run.steps:
        expected = workshop.stock(name, dtype, run.folder(step))
        assert float((expected - base).abs().max()) > 1e-3
        placement.place(Point(step=step, alpha=1.0))
        tolerance = 0.0 if placement.form == "attached" else rounding(getattr(torch, dtype))
        difference = float((probe(placement.model) - expected).abs().max())
        assert difference <= tolerance * float(expected.abs().max())
        placement.place(Point(step=step, alpha=0.0))
        assert torch.equal(probe(placement.model), base)


@pytest.mark.parametrize("name", [name for name in NATIVE if name in MERGED])
def test_attached_and_merged_are_the_same_point(name: str, workshop: Workshop) -> None:
    attached = workshop.attached(name)
    merged = Placement(workshop.run(name), form="merged", curve="native")
    for point in (Point(step=20, alpha=0.4), Point(step=10, alpha=0.9)):
        attached.place(point)
        merged.place(point)
        torch.testing.assert_close(probe(merged.model), probe(attached.model), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in MERGED if name not in NOT_LINEAR])
def test_the_line_mixes_each_layers_outputs(name: str, workshop: Workshop) -> None:
    """Merged weights on the line: `base(x) + alpha (adapted(x) - base(x))` at every layer."""
    run = workshop.run(name)
    line = Placement(run, form="merged", curve="line")
    line.place(Point(step=20, alpha=0.35))
    adapted = PeftModel.from_pretrained(workshop.base("float32"), str(run.folder(20))).eval()
    originals = workshop.base("float32")
    for path, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, torch.nn.Module):
            module.forward = mixed(originals, path, module.forward)
    torch.testing.assert_close(probe(line.model), probe(adapted), atol=1e-5, rtol=0)


def mixed(originals: Any, path: str, adapted: Callable[..., Any]) -> Callable[..., Any]:
    original = originals.get_submodule(path.removeprefix("base_model.model."))
    return partial(_mix, original, adapted)


def _mix(original: Any, adapted: Callable[..., Any], x: Any) -> Any:
    start = original(x)
    return start + 0.35 * (adapted(x) - start)


@pytest.mark.parametrize("name", NATIVE)
def test_stock_peft_loads_a_point_as_the_same_kind_of_adapter(
    name: str, workshop: Workshop, tmp_path: Path
) -> None:
    run = workshop.run(name)
    point = Point(step=20, alpha=0.37)
    placement = workshop.attached(name)
    placement.place(point)
    export(run, point, tmp_path / "out", form="adapter")
    exported = workshop.stock(name, "float32", tmp_path / "out")
    # The scalings of a LoRA with patterns are multiplied into its factors.
    allowed = 1e-6 if name == "lora-patterns" else 0.0
    torch.testing.assert_close(exported, probe(placement.model), atol=allowed, rtol=0)


@pytest.mark.parametrize("name", sorted(UNMERGED))
def test_an_adapter_that_peft_cannot_merge_is_refused_merged(
    name: str, workshop: Workshop
) -> None:
    with pytest.raises((UsageError, PlacementError), match=r"cannot (write|merge)"):
        Placement(workshop.run(name), form="merged")


def test_a_tuner_with_a_slow_forward_pass_is_merged_by_default(workshop: Workshop) -> None:
    run = workshop.run("boft")
    assert TUNERS[PeftType.BOFT].cost > MAX_ATTACHED_COST
    assert (Placement(run).form, Placement(run).curve) == ("merged", "native")
    assert Placement(run, form="attached").form == "attached"


def test_a_tuner_without_a_native_curve_says_why(workshop: Workshop, tmp_path: Path) -> None:
    run = workshop.run("hra-odd")
    assert Placement(run).curve == "line"
    with pytest.raises(UsageError, match="reflections"):
        Placement(run, form="attached", curve="native")
    with pytest.raises(UsageError, match="--as merged"):
        export(run, run.final, tmp_path / "out", form="adapter")


def test_a_clipped_generator_is_refused_past_alpha_one(workshop: Workshop) -> None:
    placement = Placement(workshop.run("oft-coft"))
    placement.place(Point(step=20, alpha=1.0))
    with pytest.raises(UsageError, match="coft"):
        placement.place(Point(step=20, alpha=1.01))


def test_a_strength_beyond_rotations_is_warned_of_once(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    for name, is_warned in (("oft", True), ("oft-exact", False)):
        caplog.clear()
        placement = Placement(workshop.run(name))
        for alpha in (1.0, 3.9, 3.9):
            placement.place(Point(step=20, alpha=alpha))
        warnings = [
            record for record in caplog.records if "no longer a rotation" in record.message
        ]
        assert len(warnings) == int(is_warned)


def test_a_lora_with_replicated_layers_is_refused(workshop: Workshop) -> None:
    model = get_peft_model(workshop.base("float32"), configs()["lora"])
    config: Any = model.peft_config["default"]
    config.layer_replication = [[0, 2]]
    with pytest.raises(PlacementError, match="layer_replication"):
        tuner_of(config)
