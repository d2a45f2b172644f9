"""Merge an exported front by mergekit, from the configurations beside it, and compare.

    python tests/real_libraries/merge.py [--environments FOLDER]

A tiny bfloat16 model with LoRA is searched and its front exported; each configuration goes through
mergekit by the command that it names, in an environment of its own (see `run.py`), and the result
is compared with our merged export of the same point, tensor by tensor. Left out are biases of
the attention, which mergekit does not know a Llama to have, and drops.

values      in all tensors
differing   of these, between the two merges
largest     largest difference between the two
ours, theirs   largest distance from the merge in float64, in units in the last place; half of one
               if rounded once. The exit code is 1 where theirs is further than two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file

from backtrack.exporter import export, export_front
from backtrack.records.export import ServedFront, ServedPoint
from backtrack.run.directory import Run
from tests.models import make_selected_run
from tests.real_libraries.run import SECONDS, python_of

MERGEKIT = ("mergekit==0.1.5",)
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Row:
    """One point merged both ways.

    Attributes:
        name: The point's name.
        num_values: Values of all tensors.
        num_differing: Of these, how many differ.
        largest: Largest difference.
        ours: Largest distance of ours from the exact merge, in units in the last place.
        theirs: The same of mergekit's.
    """

    name: str
    num_values: int
    num_differing: int
    largest: float
    ours: float
    theirs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(tempfile.gettempdir()) / "backtrack-real-libraries"
    parser.add_argument("--environments", type=Path, default=default)
    with tempfile.TemporaryDirectory() as work:
        rows = merged(parser.parse_args().environments, Path(work))
    print(
        f"{'point':28s}{'values':>10s}{'differing':>11s}{'largest':>11s}{'ours':>8s}{'theirs':>8s}"
    )
    for row in rows:
        print(f"{row.name:28s}{row.num_values:10d}{row.num_differing:11d}{row.largest:11.2g}"
              f"{row.ours:8.2f}{row.theirs:8.2f}")  # fmt: skip
    sys.exit(any(row.theirs > 2 for row in rows))


def merged(environments: Path, work: Path) -> list[Row]:
    """Merge two points of a front both ways.

    Raises:
        CalledProcessError: The environment cannot be made, or mergekit fails.
    """
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    run = make_selected_run(work, config, dtype="bfloat16", width=128)
    front = export_front(run, 2, work / "served")
    python = python_of("mergekit", MERGEKIT, environments)
    return [_row(run, front, each, python, work) for each in front.points]


def _row(run: Run, front: ServedFront, point: ServedPoint, python: Path, work: Path) -> Row:
    text = (work / "served" / "mergekit" / f"{point.name}.yaml").read_text(encoding="utf-8")
    _, *words = text.splitlines()[1].strip("# ").split()
    words[words.index("OUT")] = str(work / "theirs" / point.name)
    subprocess.run(
        [str(python), "-m", "mergekit.scripts.run_yaml", *words], timeout=SECONDS, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=work / "served", stdout=subprocess.DEVNULL,
    )  # fmt: skip
    export(run, point.point, work / "ours" / point.name, form="merged")
    theirs, ours = (load_file(work / side / point.name / WEIGHTS) for side in ("theirs", "ours"))
    missing = {name for name in set(ours) - set(theirs) if not name.endswith(".bias")}
    assert missing <= {"lm_head.weight"}, missing
    exact = exact_merge(Path(front.base), work / "served" / point.folder)
    names = sorted(set(ours) & set(theirs))
    gaps = [(theirs[n].double() - ours[n].double()).abs() for n in names]
    return Row(
        point.name,
        sum(gap.numel() for gap in gaps),
        sum(int(gap.count_nonzero()) for gap in gaps),
        max(float(gap.max()) for gap in gaps),
        max(distance(ours[n], exact[n]) for n in names),
        max(distance(theirs[n], exact[n]) for n in names),
    )


def exact_merge(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The base with an adapter merged in float64, by the definition of LoRA."""
    weights = {name: tensor.double() for name, tensor in load_file(base / WEIGHTS).items()}
    factors = load_file(adapter / "adapter_model.safetensors")
    config = LoraConfig.from_pretrained(str(adapter))
    for name, down in factors.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            up = factors[name.replace("lora_A", "lora_B")].double()
            scale = config.lora_alpha / down.shape[0]
            weights[f"{module}.weight"] += scale * up @ down.double()
    return weights


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest distance from the exact values, in units in the last place of `found`'s dtype."""
    ulp = torch.finfo(found.dtype).eps * 2.0 ** exact.abs().clamp_min(1e-30).log2().floor()
    return float(((found.double() - exact).abs() / ulp).max())


if __name__ == "__main__":
    main()
