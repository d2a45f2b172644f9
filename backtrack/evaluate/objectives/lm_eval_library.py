"""Find, load, check and evaluate tasks of lm-eval.

The log lines and progress bars of lm-eval are shown if the logger `backtrack` is at DEBUG.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import lm_eval.tasks
import lm_eval.utils
import torch
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from backtrack.errors import BacktrackError, ObjectiveError
from backtrack.evaluate.objectives.lm_eval_settle import fixed_seeds, one_call, settle
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backtrack.recipe import LmEvalObjective

_log = logging.getLogger(__name__)


class TaskLibrary:
    """Tasks shared by the objectives of a recipe.

    A task is loaded once for each combination of settings.
    """

    def __init__(self, include_paths: Sequence[str] = ()) -> None:
        """Check the folders with further tasks.

        Raises:
            ObjectiveError: A path is not a folder.
        """
        for path in include_paths:
            if not Path(path).is_dir():
                raise ObjectiveError(f"`include_path` {path!r} is not a folder.")
        self._include_paths = tuple(dict.fromkeys(include_paths))
        self._loaded: dict[tuple[object, ...], dict[str, Any]] = {}

    def tasks(self, section: LmEvalObjective) -> dict[str, Any]:
        """Load the tasks of a section, ready to be evaluated, by name.

        Raises:
            ObjectiveError: There is no such task, its data cannot be loaded, or it lacks the
                metric or filter.
        """
        key = (section.task, section.num_fewshot, section.max_gen_toks)
        if key not in self._loaded:
            with quiet(), fixed_seeds():
                self._loaded[key] = _load(_manager(section.task, self._include_paths), section)
        tasks = self._loaded[key]
        for name, task in tasks.items():
            _check_metric(name, task, section)
            _check_sampled(name, task, section)
        return tasks


def evaluate_documents(
    lm: Any, tasks: Mapping[str, Any], samples: dict[str, list[int]], section: LmEvalObjective
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate documents; returns the record lm-eval makes of each, by task.

    Args:
        lm: An lm-eval model.
        tasks: All tasks of the section, by name.
        samples: Sorted indices of the documents by task. lm-eval mislabels unsorted documents, and
            evaluates all documents of a task missing here.
        section: The objective in the recipe.

    Raises:
        ObjectiveError: lm-eval fails.
    """
    chosen = {task: tasks[task] for task in samples}
    name = section.name or section.task
    try:
        with quiet(), fixed_seeds(), _templates_once(), one_call(chosen.values()):
            answer = evaluate(
                lm,
                {"tasks": chosen},
                samples=samples,
                cache_requests=False,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=section.apply_chat_template,
                fewshot_as_multiturn=section.fewshot_as_multiturn,
            )
    except ObjectiveError as error:
        raise ObjectiveError(f"{name}: {error}") from error
    except (torch.OutOfMemoryError, BacktrackError):
        raise
    except Exception as error:
        raise ObjectiveError(f"{name}: lm-eval failed: {type(error).__name__}: {error}") from error
    found: dict[str, list[dict[str, Any]]] = answer["samples"] if answer else {}
    return found


@contextmanager
def _templates_once() -> Iterator[None]:
    """Compile each template of lm-eval once inside, and not once a document."""
    lm_eval.utils.env.from_string = _template
    try:
        yield
    finally:
        del lm_eval.utils.env.from_string


@functools.lru_cache(maxsize=256)
def _template(source: str) -> Any:
    return type(lm_eval.utils.env).from_string(lm_eval.utils.env, source)


def _manager(pattern: str, include_paths: tuple[str, ...]) -> TaskManager:
    """What knows the tasks that a pattern names.

    An index of all of lm-eval's 14,000 files takes up to half a minute of its own. One task is
    found in the folders whose files name it; groups and wildcards may lie in any.
    """
    folders = _folders_naming(pattern)
    near = TaskManager(include_path=[*folders, *include_paths], include_defaults=False)
    return near if pattern in near.all_subtasks else _index(include_paths)


@functools.lru_cache(maxsize=4)
def _index(include_paths: tuple[str, ...]) -> TaskManager:
    return TaskManager(include_path=list(include_paths) or None)


def _folders_naming(task: str) -> list[str]:
    """Folders of lm-eval whose files name a task; of two that define it, the last counts."""
    named = re.compile(rb"(?<![\w-])%b(?![\w-])" % re.escape(task.encode()))
    found = {str(path.parent) for path, text in _files().items() if named.search(text)}
    return sorted(found, reverse=True)


@functools.lru_cache(maxsize=1)
def _files() -> dict[Path, bytes]:
    """The text of each of lm-eval's files of tasks."""
    return {
        path: path.read_bytes() for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
    }


def _load(manager: TaskManager, section: LmEvalObjective) -> dict[str, Any]:
    names = _matching(manager, section.task)
    try:
        tasks: dict[str, Any] = manager.load(names)["tasks"]
    except Exception as error:
        raise ObjectiveError(
            f"lm-eval cannot load {section.task!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())} If its data set is not on this machine, fetch it "
            "first, or put a folder of the data set's name into the working directory."
        ) from error
    for name, task in tasks.items():
        settle(name, task, section)
    return tasks


def _matching(manager: TaskManager, pattern: str) -> list[str]:
    """Names that match a pattern with `*`: tasks, or groups if no task matches."""
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


def _check_metric(name: str, task: Any, section: LmEvalObjective) -> None:
    """Refuse a metric or filter the task lacks, and one that is no mean over documents or parts.

    Raises:
        ObjectiveError: Names the metrics and filters the task has.
    """
    filters = [entry["name"] for entry in task.get_config("filter_list") or []] or ["none"]
    if section.filter not in filters:
        raise ObjectiveError(
            f"task {name!r} has no filter {section.filter!r}.{nearest(section.filter, filters)} "
            f"It has {', '.join(filters)}."
        )
    ways = task.aggregation()
    usable = [m for m, way in ways.items() if way is mean or is_over_parts(way)]
    if section.metric not in ways:
        raise ObjectiveError(
            f"task {name!r} has no metric {section.metric!r}.{nearest(section.metric, ways)} "
            f"It has {', '.join(usable) or 'none that is a mean over documents'}."
        )
    if section.metric not in usable:
        raise ObjectiveError(
            f"metric {section.metric!r} of task {name!r} is a number about the whole set "
            f"({getattr(ways[section.metric], '__name__', 'aggregate')}), not a mean over "
            "documents or their parts, so points cannot be compared item by item. "
            f"Choose one of {', '.join(usable) or 'another task'}."
        )
    _check_direction(name, task, section)


def is_over_parts(aggregate: Callable[[Any], Any]) -> bool:
    """Whether an aggregate of lists, one a document, is the mean over all their values."""
    try:
        found = [aggregate(lists) for lists in ([[1.0, 1.0, 0.0], [0.0]], [[1.0], [0.0, 0.0]])]
    except Exception:  # noqa: BLE001  # aggregates of other values raise whatever they like
        return False
    return found == [0.5, 1 / 3]


def count_parts(name: str, task: Any, metric: str) -> list[int] | None:
    """How many values of a metric each document has; None if it has one number.

    The values of an empty answer are counted, as a task tells them only with an answer.

    Raises:
        ObjectiveError: A document gives no list.
    """
    if not is_over_parts(task.aggregation()[metric]):
        return None
    with quiet(), fixed_seeds():
        try:
            return [len(task.process_results(d, [""])[metric]) for d in task.eval_docs]
        except Exception as error:
            raise ObjectiveError(
                f"metric {metric!r} of task {name!r} is a mean over parts of documents, and they "
                f"cannot be counted by an empty answer: {type(error).__name__}: {error}"
            ) from error


def _check_sampled(name: str, task: Any, section: LmEvalObjective) -> None:
    if section.sampling is not None and task.OUTPUT_TYPE != "generate_until":
        raise ObjectiveError(
            f"task {name!r} is scored by likelihood ({task.OUTPUT_TYPE}): it writes nothing that "
            "could be sampled. Leave out `sampling`."
        )


def _check_direction(name: str, task: Any, section: LmEvalObjective) -> None:
    is_higher_better = task.higher_is_better().get(section.metric)
    if is_higher_better is None:
        return
    direction = "maximize" if is_higher_better else "minimize"
    if direction != section.direction:
        raise ObjectiveError(
            f"task {name!r} says that {'more' if is_higher_better else 'less'} of "
            f"{section.metric!r} is better; write `direction: {direction}`."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence log lines and progress bars of lm-eval and datasets, unless at DEBUG."""
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
        for module in (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface):
            stack.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = silent
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
