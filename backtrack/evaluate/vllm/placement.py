"""A run's points in one vLLM engine: as adapters of one batch, or by weights replaced in place.

The placement beside the engine makes each point's weights, as it does for an export, and its model
is the judge: at the start the engine must give its likelihoods at the base, at the final
checkpoint and, where points are adapters, at more strengths in one batch than it holds at a time;
else it is refused.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backtrack.errors import EngineError
from backtrack.evaluate.vllm.check import require_same_answers
from backtrack.evaluate.vllm.model import EngineModel
from backtrack.evaluate.vllm.process import Adapter, Engine
from backtrack.point import Point
from backtrack.run.checkpoint_reader import base_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import VllmEngine
    from backtrack.records import BaseModelReference, CurveName, Form


class Source(Protocol):
    """What makes a point's weights, as `backtrack.path.placement.Placement` does."""

    model: Any
    tokenizer: Any
    form: Form
    curve: CurveName
    point: Point

    def place(self, point: Point) -> None: ...

    def save(self, folder: Path, *, is_untied: bool = False) -> None: ...

    def distance(self, point: Point) -> float: ...


class VllmPlacement:
    """Stands where a `Placement` would; an engine answers.

    Attributes:
        model: Asked by objectives.
        source: The placement that makes the weights. Its model is no longer where this stands.
        tokenizer: The run's tokenizer.
        form: `attached` where points are adapters, `merged` where weights are replaced.
        curve: As the source's.
        point: Where it stands.
        engine: Running.
    """

    def __init__(
        self,
        source: Source,
        settings: VllmEngine,
        base: BaseModelReference,
        final: Point,
        log: Path,
    ) -> None:
        """Start the engine and check its answers.

        Args:
            source: At the base.
            settings: Of the engine.
            base: The run's base.
            final: The last checkpoint.
            log: All that vLLM says is added there.

        Raises:
            EngineError: It does not start, or its answers are not the placed model's.
        """
        self.source = source
        self.tokenizer, self.form, self.curve = source.tokenizer, source.form, source.curve
        self._folder = tempfile.TemporaryDirectory(prefix="backtrack-engine-")
        self._numbers: dict[Point, int] = {}
        self._loaded: Point | None = Point.base()
        self.point = Point.base()
        try:
            arguments = self._arguments(settings, base, final)
            self.engine = Engine(arguments, log)
        except BaseException:
            self._folder.cleanup()
            raise
        self._finalizer = weakref.finalize(self, _end, self.engine, self._folder)
        try:
            adapter_of = self._adapter if self.form == "attached" else None
            generation = source.model.generation_config
            self.model = EngineModel(self.engine, generation, adapter_of, self.point)
            points = _probed(final, settings.max_loras if adapter_of else 0)
            require_same_answers(self, points, arguments["dtype"])
        except BaseException:
            self.close()
            raise

    def place(self, point: Point) -> None:
        """Stand at `point`.

        Raises:
            PointError: The run has no such step, no such profile is known, or the method cannot
                stand there.
            EngineError: The engine died at this twice.
        """
        here = point.canonical
        if self.form == "merged" and here != self._loaded:
            folder = self._written(here, is_untied=True)
            self._loaded = None
            self.engine.load(folder)
            self._loaded = here
        self.point = here
        self.model.arrive(here)
        self._tidy()

    def expect(self, points: Sequence[Point]) -> None:
        """Say at which points the model will stand next: adapters are asked in one batch."""
        self.model.expect([point.canonical for point in points])
        self._tidy()

    def distance(self, point: Point) -> float:
        """L2 norm of the way from the base; see `Placement.distance`."""
        return self.source.distance(point)

    def close(self) -> None:
        """End the engine and remove what was written for it; done at the program's end too."""
        self._finalizer()

    def _arguments(
        self, settings: VllmEngine, base: BaseModelReference, final: Point
    ) -> dict[str, Any]:
        """Arguments of vLLM's `LLM` for this run."""
        folder = Path(self._folder.name) / "tokenizer"
        self.tokenizer.save_pretrained(str(folder))
        self.source.model.config.save_pretrained(str(folder))  # vLLM looks for one, twice
        dtype = str(self.source.model.dtype).removeprefix("torch.")
        arguments: dict[str, Any] = {
            "tokenizer": str(folder),
            "dtype": dtype if settings.dtype == "auto" else settings.dtype,
            "gpu_memory_utilization": settings.memory_share,
            "max_model_len": settings.max_model_len,
            "generation_config": "vllm",  # no sampling setting of the model counts
            "trust_remote_code": base.trust_remote_code,
            "seed": 0,
            **settings.llm,
        }
        if self.form == "merged":
            # As it will be written at every point: with a head of its own, and its vocabulary.
            return {"model": str(self._written(Point.base(), is_untied=True)), **arguments}
        adapter = self._written(final)
        return {
            "model": str(base_folder(base)),
            "enable_lora": True,
            "max_loras": settings.max_loras,
            "max_lora_rank": _allowed_rank(adapter),
            # No others are wrapped: a wrapped head breaks a prompt's likelihoods.
            "lora_target_modules": _targets(adapter),
            **arguments,
        }

    def _written(self, point: Point, *, is_untied: bool = False) -> Path:
        """The folder with a point's weights, written if it is not there."""
        number = self._numbers.setdefault(point, len(self._numbers) + 1)
        folder = Path(self._folder.name) / f"point-{number}"
        if not folder.exists():
            self.source.place(point)
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.source.save(partial, is_untied=is_untied)
            partial.rename(folder)
        return folder

    def _adapter(self, point: Point) -> Adapter:
        """A point's adapter; the base's has zeros for B.

        NOTE: asked without an adapter beside others, vLLM's CPU build gives the base that of the
        last of `max_loras` places (0.2 nats off, no error).
        """
        folder = self._written(point)
        return Adapter(self._numbers[point], folder)

    def _tidy(self) -> None:
        """Remove what is written of points that are not asked for now.

        A fresh engine starts from the base's folder, and loads that of the point it stands at.
        """
        kept = {Point.base(), *self.model.wanted}
        for point, number in self._numbers.items():
            if point not in kept:
                shutil.rmtree(Path(self._folder.name) / f"point-{number}", ignore_errors=True)


def _end(engine: Engine, folder: tempfile.TemporaryDirectory[str]) -> None:
    engine.close()
    folder.cleanup()


def _probed(final: Point, num_adapters: int) -> list[Point]:
    """Both ends and back; or the base and one adapter more than the engine holds at a time."""
    if not num_adapters:
        return [Point.base(), final, Point.base()]
    shares = [1.0, *(number / num_adapters for number in range(1, num_adapters))]
    return [Point.base(), *(final.model_copy(update={"alpha": share}) for share in shares)]


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Bounds on ranks that vLLM knows."""


def _allowed_rank(adapter: Path) -> int:
    """The least bound that vLLM knows for an adapter's rank.

    Raises:
        EngineError: The rank is above all of them.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    bound = next((known for known in RANKS if rank <= known), None)
    if bound is None:
        raise EngineError(
            f"vLLM serves LoRA up to rank {RANKS[-1]}, this one has {rank}. Use `placement: "
            "{form: merged}`, or measure with `engine: transformers`."
        )
    return bound


def _targets(adapter: Path) -> list[str]:
    """Last parts of the names of the modules that an adapter changes."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        names = list(file.keys())
    return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names})
