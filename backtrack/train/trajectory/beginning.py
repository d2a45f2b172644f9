"""Open the run that a training writes into: create it, or continue it where training resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from backtrack.errors import RunError, UsageError
from backtrack.run.directory import MANIFEST, Run
from backtrack.train.trajectory.base_model import (
    holds_weights,
    loading_of,
    named_base,
    plain_model,
    reference_to,
)
from backtrack.train.trajectory.live_method import method_of
from backtrack.train.trajectory.new_run import create_run, require_free
from backtrack.train.trajectory.snapshot import gather_weights

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.records import BaseModelReference
    from backtrack.train.trajectory.processes import Processes


@dataclass(frozen=True)
class Beginning:
    """What a training knows when it begins.

    Attributes:
        path: The run's folder.
        base: Folder or Hub name of the model before training; None finds or writes it.
        begun_at: Step at which training begins; above 0 an existing run is continued.
        processes: The processes of the training.
        hint: What to do if the folder holds the run that the user meant, for the message.
        is_main: Whether this is the main process.
        seed: The training seed.
    """

    path: Path
    base: str | Path | None
    begun_at: int
    processes: Processes
    hint: str
    is_main: bool
    seed: int | None = None

    def open_run(self, model: Any, tokenizer: Any) -> Run | None:
        """Create or continue the run on the main process; the others help to gather weights.

        Args:
            model: The live model; every process calls this with its own.
            tokenizer: The run's tokenizer, or None if it is the base's.

        Returns:
            The run; None on other processes than the main one.

        Raises:
            UsageError: Training resumes, and the model before it is not known.
            RunError: The folder is occupied, or the run in it is of another method.
        """
        run = self._run_to_continue(model) if self.is_main else None
        if self.processes.from_main(is_so=run is not None):
            return run
        base = self._find_base(model)
        is_found = self.processes.from_main(is_so=base is not None)
        weights = None if is_found else gather_weights(plain_model(model), is_main=self.is_main)
        if not self.is_main:
            return None
        return create_run(
            self.path, model, base, seed=self.seed, tokenizer=tokenizer, weights=weights,
            is_untrained=self.begun_at == 0,
        )  # fmt: skip

    def _run_to_continue(self, model: Any) -> Run | None:
        if self.begun_at > 0 and (self.path / MANIFEST).is_file():
            return _continued(self.path, model)
        require_free(self.path, hint=self.hint)
        return None

    def _find_base(self, model: Any) -> BaseModelReference | None:
        """The base's files; None if it must be written, and on processes other than the main one.

        Before the first step, the live weights of a whole model are the base's: they are compared
        with the files that the model names.
        """
        is_adapter = isinstance(model, PeftModel)
        if self.base is not None:
            facts = loading_of(plain_model(model))
            return reference_to(self.base, **facts) if self.is_main else None
        base = named_base(model) if self.is_main else None
        if self.begun_at > 0 and not is_adapter and self.is_main and base is None:
            raise UsageError(
                f"training resumes at step {self.begun_at}, and the model before training is not "
                "known. Name it: `base=FOLDER_OR_NAME`."
            )
        is_comparable = self.begun_at == 0 and not is_adapter
        if is_comparable and self.processes.from_main(is_so=base is not None):
            return base if holds_weights(base, model) else None
        return base


def _continued(path: Path, model: Any) -> Run:
    run = Run.open(path)
    kind = method_of(model).kind
    if run.manifest.method.kind != kind:
        raise RunError(
            f"{path} was trained by `{run.manifest.method.kind}`, but the model that resumes has "
            f"method `{kind}`. Resume with the same method, or use another name."
        )
    return run
