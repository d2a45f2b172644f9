"""The points of a run in one vLLM engine: adapters in one batch, or weights replaced in place.

The placement beside the engine writes the weights of each point, as for an export, and its model
is the reference: at its start the engine must reproduce its likelihoods at the base, at the final
checkpoint and, if points are adapters, at more strengths than it holds at a time. An engine that
does not is refused.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.evaluate.engine import Engine
from backtrack.evaluate.vllm.adapters import allowed_rank, form_in_vllm, target_modules
from backtrack.evaluate.vllm.check import require_same_answers
from backtrack.evaluate.vllm.model import VllmModel
from backtrack.evaluate.vllm.process import Adapter, VllmProcess
from backtrack.point import Point
from backtrack.run.checkpoint_reader import base_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.engine import PlacedModel, RunFacts
    from backtrack.recipe import PlacementSection, VllmSection
    from backtrack.records import BaseModelReference

LOG = "engine.log"
"""Log file of vLLM in the directory of the run."""


class VllmEngine(Engine):
    """Answers requests with a vLLM engine.

    Attributes:
        language_model: The model of the engine.
        process: The process of the engine.
    """

    language_model: VllmModel

    @override
    @classmethod
    def placement_options(cls, section: PlacementSection, checkpoint: Path) -> dict[str, Any]:
        """Options of the recipe, on the CPU unless it names a device, as the engine uses the GPU.

        Raises:
            UsageError: vLLM cannot read the adapter, and `attached` is required.
        """
        return {
            **section.model_dump(),
            "form": form_in_vllm(checkpoint, section.form),
            "device": "cpu" if section.device == "auto" else section.device,
        }

    def __init__(self, placed: PlacedModel, settings: VllmSection, run: RunFacts) -> None:
        self.placed = placed
        self.tokenizer, self.form, self.curve = placed.tokenizer, placed.form, placed.curve
        self._folder = tempfile.TemporaryDirectory(prefix="backtrack-engine-")
        self._numbers: dict[Point, int] = {}
        self._loaded: Point | None = Point.base()
        try:
            arguments = self._arguments(settings, run.base, run.final)
            self.process = VllmProcess(arguments, run.folder / LOG)
        except BaseException:
            self._folder.cleanup()
            raise
        self._finalizer = weakref.finalize(self, _end, self.process, self._folder)
        try:
            adapter_of = self._adapter if self.form == "attached" else None
            self.language_model = VllmModel(
                self.process,
                self.tokenizer,
                placed.model.generation_config,
                adapter_of,
                Point.base(),
            )
            points = _probed(run.final, settings.max_loras if adapter_of else 0)
            require_same_answers(self, self.language_model, placed, points, arguments["dtype"])
        except BaseException:
            self.close()
            raise

    @property
    @override
    def point(self) -> Point:
        return self.language_model.answers.point

    @override
    def place(self, point: Point) -> None:
        """Move the model to `point`.

        Raises:
            PointError: The run has no such step, no such profile is known, or the method cannot
                reach the point.
            EngineError: The engine died twice at this request.
        """
        canonical = point.canonical
        if self.form == "merged" and canonical != self._loaded:
            folder = self._written(canonical, is_untied=True)
            self._loaded = None
            self.process.load(folder)
            self._loaded = canonical
        self.language_model.answers.arrive(canonical)
        self._tidy()

    @override
    def expect(self, points: Sequence[Point]) -> None:
        """Announce the next points; adapters are asked in one batch."""
        self.language_model.expect([point.canonical for point in points])
        self._tidy()

    @override
    def distance(self, point: Point) -> float:
        return self.placed.distance(point)

    @override
    def close(self) -> None:
        """Stop the engine and remove its files; also done when the program ends."""
        self._finalizer()

    def _arguments(
        self, settings: VllmSection, base: BaseModelReference, final: Point
    ) -> dict[str, Any]:
        """Arguments of the `LLM` of vLLM for this run."""
        folder = Path(self._folder.name) / "tokenizer"
        self.placed.save_files(folder)
        self.placed.model.config.save_pretrained(str(folder))  # vLLM reads it too
        dtype = str(self.placed.model.dtype).removeprefix("torch.")
        arguments: dict[str, Any] = {
            "tokenizer": str(folder),
            "dtype": dtype if settings.dtype == "auto" else settings.dtype,
            "gpu_memory_utilization": settings.memory_share,
            "max_model_len": settings.max_model_len,
            "generation_config": "vllm",  # ignore sampling settings of the model
            "trust_remote_code": base.trust_remote_code,
            "seed": 0,
            **settings.llm,
        }
        if self.form == "merged":
            # Written as at every point, with an untied head.
            return {"model": str(self._written(Point.base(), is_untied=True)), **arguments}
        adapter = self._written(final)
        return {
            "model": str(base_folder(base)),
            "enable_lora": True,
            "max_loras": settings.max_loras,
            "max_lora_rank": allowed_rank(adapter),
            # Others must not be wrapped: a wrapped head breaks the likelihoods of prompts.
            "lora_target_modules": target_modules(adapter),
            **arguments,
        }

    def _written(self, point: Point, *, is_untied: bool = False) -> Path:
        """The folder with the weights of a point, written if missing."""
        number = self._numbers.setdefault(point, len(self._numbers) + 1)
        folder = Path(self._folder.name) / f"point-{number}"
        if not folder.exists():
            self.placed.place(point)
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.placed.save(partial, is_untied=is_untied)
            partial.rename(folder)
        return folder

    def _adapter(self, point: Point) -> Adapter:
        """The adapter of a point; that of the base has a zero B.

        NOTE: the CPU build of vLLM answers a request without an adapter, in a batch with others,
        with the last of `max_loras` adapters (0.2 nats off, no error).
        """
        folder = self._written(point)
        return Adapter(self._numbers[point], folder)

    def _tidy(self) -> None:
        """Remove the folders of points not asked for now.

        A restarted engine reads the folder of the base and that of the current point.
        """
        points = {Point.base(), *self.language_model.answers.points}
        for point, number in self._numbers.items():
            if point not in points:
                shutil.rmtree(Path(self._folder.name) / f"point-{number}", ignore_errors=True)


def _end(process: VllmProcess, folder: tempfile.TemporaryDirectory[str]) -> None:
    process.close()
    folder.cleanup()


def _probed(final: Point, num_adapters: int) -> list[Point]:
    """Both ends and back; or the base and one adapter more than the engine holds."""
    if not num_adapters:
        return [Point.base(), final, Point.base()]
    strengths = [1.0, *(number / num_adapters for number in range(1, num_adapters))]
    return [
        Point.base(),
        *(final.model_copy(update={"alpha": strength}) for strength in strengths),
    ]
