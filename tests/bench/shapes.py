"""Every shape of a checkpoint folder: adopted, placed, exported, compared with stock libraries.

    python tests/bench/shapes.py [PART-OF-A-NAME ...]

Prints a Markdown table with a row a shape. Cells hold the largest difference of logits, relative
to the largest logit, `exact` where there is none; at alpha 1 also whether stock `generate` gives
the same text. At alpha 0.5 the model is compared with one that this package had no part in: whole
models mixed tensor by tensor, LoRA with half its scaling; `moves` where there is no such model.
Exports at alpha 0.5 are loaded by stock libraries and compared with the placed model. Steps that
alone are damaged are left out, in words; a refusal is quoted. The exit code is 1 if a row is
wrong: a crash, or a difference beyond rounding.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from backtrack.errors import BacktrackError
from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import Run
from tests.bench.shape_cases import Folder, Make, all_shapes

COLUMNS = ("adopt", "alpha 0", "alpha 1", "text", "alpha 0.5", "adapter", "merged")
LONGEST_QUOTE = 160
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 4e-3}
"""Largest difference, relative to the largest logit, that weights of a type may make."""
IDS = torch.tensor([[5, 9, 12, 7, 30, 21], [8, 8, 15, 40, 3, 11]])


@dataclass
class Row:
    """The cells of a shape, and whether one of them is wrong."""

    folder: Path
    cells: dict[str, str] = field(default_factory=dict)
    is_wrong: bool = False

    @property
    def is_refused(self) -> bool:
        """Whether no point could be measured, in words."""
        is_measured = "alpha 1" in self.cells
        return not self.is_wrong and not is_measured

    def fill(self, column: str, measure: Callable[[], str]) -> None:
        """Fill a cell with what `measure` returns, or with the refusal that it raises."""
        try:
            self.cells[column] = measure()
        except BacktrackError as error:
            self.cells[column] = f"refused: {self.quote(str(error))}"
        except Exception as error:  # noqa: BLE001  # a crash is a result here
            traceback.print_exc()
            self.cells[column] = f"CRASH {type(error).__name__}"
            self.is_wrong = True

    def quote(self, text: str) -> str:
        """The beginning of a message, without the temporary folder that it names."""
        plain = " ".join(text.replace(f"{self.folder}/", "").replace("|", "/").split())
        return plain if len(plain) <= LONGEST_QUOTE else f"{plain[:LONGEST_QUOTE]}..."

    def fill_difference(
        self, column: str, found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype
    ) -> None:
        """Fill a cell with the relative difference of logits."""
        gap = float((found - expected).abs().max() / expected.abs().max())
        self.cells[column] = f"{gap:.1g}" if gap else "exact"
        self.is_wrong |= not gap <= ROUNDING[dtype]


def main() -> None:
    parts = sys.argv[1:] or [""]
    shapes = {n: m for n, m in all_shapes().items() if any(part in n for part in parts)}
    sys.exit(print_table(shapes))


def print_table(shapes: Mapping[str, Make]) -> bool:
    """Print a row for each shape; return whether one is wrong."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"| shape | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    wrong, refused = [], []
    for name, make in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            row = measured(make(Path(folder)), Path(folder))
        cells = (row.cells.get(column, "") for column in COLUMNS)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        wrong += [name] if row.is_wrong else []
        refused += [name] if row.is_refused else []
    num_exact = len(shapes) - len(wrong) - len(refused)
    print(
        f"\n{len(shapes)} shapes: {num_exact} exact, {len(refused)} refused with the cause, "
        f"{len(wrong)} wrong{': ' if wrong else ''}{'; '.join(wrong)}"
    )
    return bool(wrong)


def measured(shape: Folder, folder: Path) -> Row:
    """All cells of a shape."""
    row = Row(folder)
    runs: list[Run] = []
    row.fill("adopt", lambda: _adopted(shape, row, runs))
    if not runs:
        return row
    run = runs[0]
    placements: list[Placement] = []
    row.fill("alpha 0", lambda: _opened(run, placements))
    if placements:
        _compare_points(row, run, placements[0], shape.base)
        if is_adapter(run.folder(run.final.step)):
            _compare_export(row, run, placements[0], folder / "adapter", "adapter")
        _compare_export(row, run, placements[0], folder / "merged", "merged")
    return row


def _adopted(shape: Folder, row: Row, found: list[Run]) -> str:
    skipped: list[str] = []
    runs = row.folder / "runs"
    found.append(adopt(shape.source, base=str(shape.base), runs=runs, on_skip=skipped.append))
    steps = f"steps {', '.join(map(str, found[0].steps))}"
    return "; left out: ".join([steps, *map(row.quote, skipped)])


def _opened(run: Run, found: list[Placement]) -> str:
    found.append(Placement(run, device="cpu"))
    return ""


def _compare_points(row: Row, run: Run, placement: Placement, base: Path) -> None:
    """Fill the columns of alpha 0, 1 and 0.5, at every step; the largest difference counts."""
    start = probe(_stock(base))
    placement.place(Point.base())
    row.fill_difference("alpha 0", _logits(placement, start), start, placement.model.dtype)
    for step in run.steps:
        try:
            placement.place(Point(step=step, alpha=1.0))
        except BacktrackError as error:
            row.cells["adopt"] += f"; step {step} refused: {row.quote(str(error))}"
        else:
            _compare_step(row, run, placement, step, base)


def _compare_step(row: Row, run: Run, placement: Placement, step: int, base: Path) -> None:
    """Compare a placement at alpha 1 of a step, and then at 0.5."""
    dtype = placement.model.dtype
    stock = _stock_checkpoint(run, step, base)
    end = probe(stock)
    row.fill_difference("alpha 1", _logits(placement, end), end, dtype)
    is_same = torch.equal(_generated(placement.model), _generated(stock))
    row.cells["text"] = "same" if is_same else "DIFFERS"
    row.is_wrong |= not is_same
    placement.place(Point(step=step, alpha=0.5))
    half = _logits(placement, end)
    middle = _independent_middle(run, step, base)
    if middle is not None:
        row.fill_difference("alpha 0.5", half, middle[..., : half.shape[-1]], dtype)
    else:
        row.cells["alpha 0.5"] = "moves"
        row.is_wrong |= torch.equal(half, end)


def _logits(placement: Placement, like: torch.Tensor) -> torch.Tensor:
    return probe(placement.model, like.shape[-1])


def _compare_export(
    row: Row, run: Run, placement: Placement, folder: Path, form: Literal["adapter", "merged"]
) -> None:
    """Fill the column of an export at alpha 0.5 of the last step."""
    point = Point(step=run.final.step, alpha=0.5)

    def write() -> str:
        export(run, point, folder, form=form, device="cpu")
        return ""

    row.fill(form, write)
    if not row.cells[form]:
        placement.place(point)
        loaded = _stock(folder) if form == "merged" else _adapted(Path(run.base.model), folder)
        expected = probe(placement.model)
        row.fill_difference(form, probe(loaded), expected, placement.model.dtype)


def _stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def _adapted(base: Path, folder: Path) -> Any:
    return PeftModel.from_pretrained(_stock(base), str(folder)).eval()


def _stock_checkpoint(run: Run, step: int, base: Path) -> Any:
    """A checkpoint as its user loads it; whole models in the base's type."""
    folder = run.folder(step)
    if not is_adapter(folder):
        model = _stock(base)
        if run.entry(step).storage == "plain" and not _is_wrapped(run, step):
            return AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
        model.load_state_dict(read_checkpoint(run, step), strict=False)
        return model
    if not _is_wrapped(run, step):
        return _adapted(base, folder)
    with tempfile.TemporaryDirectory() as plain:
        _write_plain(run, step, Path(plain))
        return _adapted(base, Path(plain))


def _is_wrapped(run: Run, step: int) -> bool:
    """Whether names in the files have a wrapper's prefix, with which stock reads nothing."""
    path = next(run.folder(step).glob("*model*.safetensors"), None)
    if path is None:
        return False
    with safe_open(path, framework="pt") as file:
        return any(name.startswith(("_orig_mod.", "module.")) for name in file.keys())  # noqa: SIM118


def _write_plain(run: Run, step: int, folder: Path) -> None:
    """An adapter without its wrapper's prefix."""
    source = run.folder(step)
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    plain = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}
    save_file(plain, folder / "adapter_model.safetensors")


@torch.inference_mode()
def _generated(model: Any) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=12
    )
    return tokens


def _independent_middle(run: Run, step: int, base: Path) -> torch.Tensor | None:
    """Logits halfway, made without this package; None if there is no simple way."""
    start, end = _stock(base), _stock_checkpoint(run, step, base)
    if not isinstance(end, PeftModel):
        return _mixed(start, end)
    layers = [m for m in end.modules() if isinstance(m, LoraLayer)]
    trained = {n for n, p in end.named_parameters() if p.requires_grad or "default" in n}
    has_more = any("lora_A" not in n and "lora_B" not in n for n in trained)
    config: Any = end.peft_config["default"]
    is_plain = config.peft_type == "LORA" and config.bias == "none" and not has_more
    if not is_plain or config.init_lora_weights == "pissa":
        return None
    for layer in layers:
        layer.scaling["default"] *= 0.5
    return probe(end)


def _mixed(start: Any, end: Any) -> torch.Tensor | None:
    """Logits of the mean of two models; if only one of them ties its head, the mean does not."""
    trained, base = end.state_dict(), start.state_dict()
    if any(base[n].shape != t.shape if n in base else True for n, t in trained.items()):
        return None
    halves = {
        name: torch.lerp(base[name].float(), tensor.float(), 0.5).to(base[name].dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in trained.items()
    }
    model = max(start, end, key=lambda m: len(dict(m.named_parameters())))
    model.load_state_dict(halves)
    return probe(model)


if __name__ == "__main__":
    main()
