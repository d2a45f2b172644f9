"""Tasks of lm-eval, document by document, on one model in memory; lm-eval is imported here only.

Promised, where lm-eval itself does not:
- a document's prompt is the same at every call and in every subset: its few-shot examples are
  drawn from a seed made of the document, not from one stream for all documents asked for;
- a task's documents are made once, so a task that shuffles them shuffles once;
- nothing of an earlier call is reused, since the weights may have changed in place;
- documents keep their ids: lm-eval is given them sorted, and never a `limit`;
- the batch size is fixed, and whatever a task samples at random starts from the same seed.
Not promised: the last bits when other documents are asked for, since they make other batches.

lm-eval's own log lines and progress bars are shown when the logger `backtrack` is at DEBUG.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import importlib.metadata
import logging
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import torch
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from backtrack.errors import EngineError, ObjectiveError
from backtrack.evaluate.forward import evaluating, require_served
from backtrack.evaluate.objectives.items import digest, finite, positions
from backtrack.evaluate.objectives.lm_eval_settle import (
    SEED,
    fixed_seeds,
    one_call,
    settle,
    task_digest,
)
from backtrack.evaluate.served import Served
from backtrack.recipe import nearest
from backtrack.records import ObjectiveInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backtrack.recipe import LmEvalObjective

_log = logging.getLogger(__name__)


class Harness:
    """What the `lm_eval` objectives of one recipe share.

    The index of tasks takes seconds to build and is kept for the process; tasks are loaded once
    for each distinct way of asking for them; the model is wrapped once.
    """

    def __init__(self, tokenizer: Any, batch_size: int, include_paths: Sequence[str] = ()) -> None:
        for path in include_paths:
            if not Path(path).is_dir():
                raise ObjectiveError(f"`include_path` {path!r} is not a folder.")
        self.batch_size = batch_size
        self.tokenizer = tokenizer
        self._include_paths = tuple(dict.fromkeys(include_paths))
        self._loaded: dict[tuple[object, ...], dict[str, Any]] = {}
        self._wrapped: tuple[Any, Any, Any] | None = None

    def tasks(self, settings: LmEvalObjective) -> dict[str, Any]:
        """The tasks the settings name, ready to be asked, by name."""
        key = (settings.task, settings.num_fewshot, settings.max_gen_toks)
        if key not in self._loaded:
            with _quiet(), fixed_seeds():
                manager = _index(self._include_paths)
                self._loaded[key] = _load(manager, settings)
        return self._loaded[key]

    def wrap(self, model: Any, tokenizer: Any) -> Any:
        """The model as lm-eval sees it; built anew only for another model or tokenizer.

        A served model is seen as lm-eval's `vllm` one, every other as its `hf` one.

        NOTE: HFLM ties weights and calls `eval()` when it is built, and gives a tokenizer without
        a padding token one; the tokenizer it gets is therefore a copy.
        """
        if (
            self._wrapped is None
            or self._wrapped[0] is not model
            or self._wrapped[1] is not tokenizer
        ):
            with _quiet():
                lm = self._lm(model, copy.deepcopy(tokenizer))
            self._wrapped = (model, tokenizer, lm)
        return self._wrapped[2]

    def _lm(self, model: Any, tokenizer: Any) -> Any:
        if isinstance(model, Served):  # an `EngineModel`
            from backtrack.evaluate.vllm.lm_eval_model import EngineLM

            return EngineLM(model, tokenizer)
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size)


class TaskScores:
    """One metric of lm-eval, one score a document; items are `task/number of the document`."""

    def __init__(self, settings: LmEvalObjective, harness: Harness) -> None:
        self._settings = settings
        self._harness = harness
        self._check_chat()
        self._tasks = harness.tasks(settings)
        for name, task in self._tasks.items():
            _check_metric(name, task, settings)
            _check_sampled(name, task, settings)
        self.item_ids = tuple(
            f"{name}/{number}"
            for name, task in self._tasks.items()
            for number in range(len(task.eval_docs))
        )
        self.info = ObjectiveInfo(
            name=settings.name or settings.task,
            role=settings.role,
            kind="lm_eval",
            direction=settings.direction,
            unit=settings.unit,
            weight=settings.weight,
            fingerprint=self._fingerprint(),
        )

    def measure(self, model: Any, tokenizer: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        """The metric of each document, in the order of `item_ids`.

        Raises:
            ObjectiveError: A document is unknown, lm-eval fails, or a score is not finite.
        """
        if not item_ids:
            return ()
        positions(item_ids, self.item_ids, self.info.name)
        numbers: dict[str, list[int]] = {}
        for item_id in item_ids:
            name, _, number = item_id.rpartition("/")
            numbers.setdefault(name, []).append(int(number))
        # In the tasks' own order, and sorted: lm-eval mislabels unsorted documents, and evaluates
        # all documents of a task that `samples` leaves out.
        samples = {name: sorted(numbers[name]) for name in self._tasks if name in numbers}
        if self._settings.sampling is not None:
            require_served(model)
        with evaluating(model, self.info.name):
            lm = self._harness.wrap(model, tokenizer)
            with _quiet(), fixed_seeds():
                found = [self._evaluate(each, samples) for each in self._draws(lm)]
        scores = [fmean(each[item_id] for each in found) for item_id in item_ids]
        return finite(scores, item_ids, self.info.name)

    def texts(self) -> tuple[str, ...]:
        """Each document as lm-eval asks it, without examples."""
        return tuple(
            str(task.doc_to_text(document))
            for task in self._tasks.values()
            for document in task.eval_docs
        )

    def _draws(self, lm: Any) -> Iterator[Any]:
        """The model once a sampled answer, or once where tasks are asked as they are."""
        sampling = self._settings.sampling
        if isinstance(lm, HFLM):
            yield lm
            return
        lm.sampling = sampling
        for lm.number in range(sampling.samples if sampling else 1):
            yield lm

    def _evaluate(self, lm: Any, samples: dict[str, list[int]]) -> dict[str, float]:
        tasks = {name: self._tasks[name] for name in samples}
        try:
            with one_call(tasks.values()):
                answer = evaluate(
                    lm,
                    {"tasks": tasks},
                    samples=samples,
                    cache_requests=False,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=self._settings.apply_chat_template,
                    fewshot_as_multiturn=self._settings.fewshot_as_multiturn,
                )
        except (torch.OutOfMemoryError, EngineError):
            raise
        except Exception as error:
            raise ObjectiveError(
                f"{self.info.name}: lm-eval failed: {type(error).__name__}: {error}"
            ) from error
        return self._by_item(answer["samples"] if answer else {})

    def _by_item(self, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
        return {
            f"{name}/{sample['doc_id']}": self._score(name, sample)
            for name, of_task in samples.items()
            for sample in of_task
            if sample["filter"] == self._settings.filter
        }

    def _score(self, name: str, sample: Mapping[str, Any]) -> float:
        metric = self._settings.metric
        if metric not in sample:
            raise ObjectiveError(
                f"task {name!r} gives document {sample['doc_id']} no metric {metric!r}; "
                f"it gives {', '.join(sample['metrics'])}."
            )
        try:
            return float(sample[metric])
        except (TypeError, ValueError) as error:
            raise ObjectiveError(
                f"metric {metric!r} of task {name!r} is not one number a document: document "
                f"{sample['doc_id']} has {sample[metric]!r}. Choose another metric."
            ) from error

    def _check_chat(self) -> None:
        settings = self._settings
        if settings.fewshot_as_multiturn and not settings.apply_chat_template:
            raise ObjectiveError(
                f"{settings.task}: `fewshot_as_multiturn` needs `apply_chat_template: true`."
            )
        if settings.apply_chat_template and self._harness.tokenizer.chat_template is None:
            raise ObjectiveError(
                f"{settings.task}: `apply_chat_template` is set, but the tokenizer has no chat "
                "template. Leave it out, or use the tokenizer of a chat model."
            )

    def _fingerprint(self) -> str:
        decides = self._settings.model_dump(
            include={"metric", "filter", "apply_chat_template", "fewshot_as_multiturn"}
        )
        if self._settings.sampling is not None:
            decides["sampling"] = self._settings.sampling.model_dump()
        template = (
            self._harness.tokenizer.chat_template if decides["apply_chat_template"] else None
        )
        versions = {name: importlib.metadata.version(name) for name in ("lm-eval", "datasets")}
        tasks = {name: task_digest(task) for name, task in self._tasks.items()}
        return digest(
            "lm_eval", decides, template, versions, self._harness.batch_size, SEED, tasks
        )


@functools.lru_cache(maxsize=4)
def _index(include_paths: tuple[str, ...]) -> TaskManager:
    return TaskManager(include_path=list(include_paths) or None)


def _load(manager: TaskManager, settings: LmEvalObjective) -> dict[str, Any]:
    names = _matching(manager, settings.task)
    try:
        tasks: dict[str, Any] = manager.load(names)["tasks"]
    except Exception as error:
        raise ObjectiveError(
            f"lm-eval cannot load {settings.task!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())} If its data set is not on this machine, fetch it "
            "first, or put a folder of the data set's name into the working directory."
        ) from error
    for name, task in tasks.items():
        settle(name, task, settings)
    return tasks


def _matching(manager: TaskManager, pattern: str) -> list[str]:
    """Names the pattern stands for; `*` matches tasks, and groups where it matches no task."""
    if pattern in manager.all_tasks:
        return [pattern]
    found = fnmatch.filter(manager.all_subtasks, pattern) or fnmatch.filter(
        manager.all_tasks, pattern
    )
    if not found:
        raise ObjectiveError(
            f"lm-eval has no task, group or tag {pattern!r}.{nearest(pattern, manager.all_tasks)} "
            "`lm-eval ls tasks` lists them; tasks of your own need `include_path`."
        )
    return found


def _check_metric(name: str, task: Any, settings: LmEvalObjective) -> None:
    """Refuse a metric or filter the task lacks, and a metric that is no mean over documents.

    Raises:
        ObjectiveError: With the metrics and filters the task has.
    """
    filters = [entry["name"] for entry in task.get_config("filter_list") or []] or ["none"]
    if settings.filter not in filters:
        raise ObjectiveError(
            f"task {name!r} has no filter {settings.filter!r}.{nearest(settings.filter, filters)} "
            f"It has {', '.join(filters)}."
        )
    ways = task.aggregation()
    usable = [metric for metric, way in ways.items() if way is mean]
    if settings.metric not in ways:
        raise ObjectiveError(
            f"task {name!r} has no metric {settings.metric!r}.{nearest(settings.metric, ways)} "
            f"It has {', '.join(usable) or 'none that is a mean over documents'}."
        )
    if settings.metric not in usable:
        raise ObjectiveError(
            f"metric {settings.metric!r} of task {name!r} is a number about the whole set "
            f"({getattr(ways[settings.metric], '__name__', 'aggregate')}), not a mean of one "
            "number a document, so points cannot be compared item by item. "
            f"Choose one of {', '.join(usable) or 'another task'}."
        )
    _check_direction(name, task, settings)


def _check_sampled(name: str, task: Any, settings: LmEvalObjective) -> None:
    if settings.sampling is not None and task.OUTPUT_TYPE != "generate_until":
        raise ObjectiveError(
            f"task {name!r} is scored by likelihood ({task.OUTPUT_TYPE}): it writes nothing that "
            "could be sampled. Leave out `sampling`."
        )


def _check_direction(name: str, task: Any, settings: LmEvalObjective) -> None:
    is_higher_better = task.higher_is_better().get(settings.metric)
    if is_higher_better is None:
        return
    direction = "maximize" if is_higher_better else "minimize"
    if direction != settings.direction:
        raise ObjectiveError(
            f"task {name!r} says that {'more' if is_higher_better else 'less'} of "
            f"{settings.metric!r} is better; write `direction: {direction}`."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log lines and progress bars of lm-eval and datasets, unless asked at DEBUG."""
    if _log.isEnabledFor(logging.DEBUG):
        yield
        return
    bar = lm_eval.api.task.tqdm

    def silent(*args: Any, **kwargs: Any) -> Any:
        return bar(*args, **{**kwargs, "disable": True})

    with ExitStack() as stack:
        for name in ("lm_eval", "datasets"):
            stack.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.ERROR)
        quieted = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
        if "lm_eval.models.vllm_causallms" in sys.modules:
            quieted.append(sys.modules["lm_eval.models.vllm_causallms"])
        for module in quieted:
            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = silent
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
