"""Train one entrant by several processes of this machine, as `accelerate launch` does."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import FailureError
from backtrack.run.directory import Run

if TYPE_CHECKING:
    from backtrack.recipe import ClusterSection, Recipe

_PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when its parent ends."""


def num_processes(section: ClusterSection) -> int:
    """How many processes train an entrant: one for each GPU that is asked for, by number."""
    asked = section.gpus_per_actor
    return 1 if asked == "auto" else max(1, int(asked))


def train_by_processes(recipe: Recipe, number: int) -> Run:
    """Train a recipe by `number` processes, under the user's settings of accelerate if any.

    A batch is that of one process; `number` of them make a step.

    Raises:
        FailureError: The training failed; with what it printed last.
    """
    with tempfile.TemporaryDirectory(prefix="backtrack-arena-") as folder:
        file = Path(folder) / f"{recipe.name}.yaml"
        file.write_text(recipe.model_dump_json(indent=2), encoding="utf-8")  # JSON is YAML
        command = [*_launch(number), "backtrack", "train", str(file), "--resume", "--quiet"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=_end_with_parent,
        ) as process:  # fmt: skip
            try:
                _, said = process.communicate()
            except BaseException:
                process.terminate()  # accelerate passes it on to what it started
                raise
    if process.returncode:
        # After the error of a process comes torchrun's own account of it.
        told = said[said.find("error: ") :] if "error: " in said else said[-500:]
        raise FailureError(
            f"{number} processes could not train it: {' '.join(told[:500].split())}"
        )
    return Run.open(Path(recipe.output) / recipe.name)


def _launch(number: int) -> list[str]:
    from accelerate.commands.config.config_args import default_config_file

    # The flag would put plain data parallelism in place of what `accelerate config` asked for.
    flags = [] if Path(default_config_file).is_file() else ["--multi_gpu"]
    ports = ["--num_machines", "1", "--main_process_port", "0"]  # 0: any that is free
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *ports]
    return [*command, "--num_processes", str(number), "-m"]


def _end_with_parent() -> None:
    """In the child: be told to end if the parent is killed, which then cannot say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
