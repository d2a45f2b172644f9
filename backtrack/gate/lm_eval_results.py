"""A folder that lm-eval wrote with `--log_samples`, as a side of a gate. No model, no lm-eval.

    FOLDER/results_DATE.json         the metrics, their directions, groups of tasks
    FOLDER/samples_TASK_DATE.jsonl   a line a document and filter

The newest samples of each task count. A metric is named `TASK` where the task has one only, else
`TASK:METRIC` or `TASK:METRIC,FILTER`; TASK may also be a group of tasks, or match several by `*`:
their documents are then the items, each task a stratum. A metric counts if it is one number a
document, or a list of them whose mean over all documents is what lm-eval reported (IFEval's over
instructions): its items are the parts, `task/number.part`, and a document is a cluster. A recipe
may say instead which are meant, and their roles.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from backtrack.errors import RunError, UsageError
from backtrack.gate.sides import ItemScores, RecordedScores, Side
from backtrack.records import FRACTION, ObjectiveInfo
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.recipe import ObjectiveSection
    from backtrack.recipe.objectives import LmEvalObjective

_DATE = r"(?P<date>\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}[.\d]*)"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_{_DATE}\.jsonl")
_RESULTS = re.compile(rf"results_{_DATE}\.json")
_DIGESTS = {"doc_hash": "document", "prompt_hash": "prompt", "target_hash": "right answer"}
LABEL = "score"
"""Unit of a metric whose values do not all lie between 0 and 1."""


class Metric(NamedTuple):
    """A metric of lm-eval after a filter of the outputs."""

    metric: str
    filter: str

    def __str__(self) -> str:
        return self.metric if self.filter == "none" else f"{self.metric},{self.filter}"


def is_lm_eval_folder(path: Path) -> bool:
    """Whether lm-eval wrote results or samples into a folder, or into one below it."""
    return path.is_dir() and any(_files(path))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.json*")):
        if _SAMPLES.fullmatch(path.name) or _RESULTS.fullmatch(path.name):
            yield path


class LmEvalSide(Side):
    """Scores by document that lm-eval wrote."""

    def __init__(
        self,
        folder: Path,
        *,
        sections: Sequence[ObjectiveSection] = (),
        targets: Collection[str] = (),
    ) -> None:
        """Find the files.

        Args:
            folder: As given to lm-eval's `--output_path`, or one below it.
            sections: Objectives of a recipe, which say the metrics and roles that are meant; those
                of other kinds than `lm_eval` have no scores here.
            targets: Without a recipe, the names with the role `target`; others are `general`.

        Raises:
            RunError: There are no scores by document, or those of several models.
        """
        self.name = str(folder)
        self._folder = folder
        self._sections = sections
        self._targets = targets
        self._results, self._samples = _newest(folder)
        self._tasks: dict[str, _Task] = {}

    @cached_property
    @override
    def objectives(self) -> Mapping[str, ItemScores]:
        if self._sections:
            chosen = (self._of_section(section) for section in self._sections)
            return {scores.info.name: scores for scores in chosen if scores is not None}
        return {task: self._named(task) for task in sorted(self._samples)}

    @override
    def find(self, name: str) -> ItemScores | None:
        names = {section.name or section.default_name for section in self._sections}
        if name in names:
            return self.objectives.get(name)
        return self._named(name) if self._matching(name.partition(":")[0]) else None

    @property
    @override
    def known_names(self) -> tuple[str, ...]:
        return tuple(
            task if len(metrics) == 1 else f"{task}:{metric}"
            for task in sorted(self._samples)
            for metrics in [self._task(task).metrics]
            for metric in metrics
        )

    def _of_section(self, section: ObjectiveSection) -> ItemScores | None:
        if section.kind != "lm_eval":
            return None
        asked: LmEvalObjective = section  # type: ignore[assignment]
        tasks = self._matching(asked.task)
        metric = Metric(asked.metric, asked.filter)
        if not tasks or any(metric not in self._task(task).metrics for task in tasks):
            return None
        return self._joined(asked.info(""), tasks, metric)

    def _named(self, name: str) -> ItemScores:
        """The scores of `TASK`, `TASK:METRIC` or `TASK:METRIC,FILTER`.

        Raises:
            UsageError: Several metrics are meant, or none.
        """
        pattern, _, wanted = name.partition(":")
        tasks = self._matching(pattern)
        shared = set.intersection(*(set(self._task(task).metrics) for task in tasks))
        metrics = [m for m in sorted(shared) if wanted in ("", m.metric, str(m))]
        if len(metrics) != 1:
            there = ", ".join(f"{pattern}:{metric}" for metric in sorted(shared)) or "none"
            raise UsageError(
                f"{self.name}: {name!r} names {len(metrics) or 'no'} metrics. There are {there}: "
                "name one, or give a recipe with --recipe whose objectives say which is meant."
            )
        (metric,) = metrics
        scores = [v for task in tasks for v in self._task(task).metrics[metric].values()]
        is_fraction = all(0 <= score <= 1 for score in scores)
        is_more = all(self._is_more_better(task, metric.metric) for task in tasks)
        info = ObjectiveInfo(
            name=name,
            role="target" if {name, pattern} & set(self._targets) else "general",
            kind="lm_eval",
            direction="maximize" if is_more else "minimize",
            unit=FRACTION if is_fraction else LABEL,
            fingerprint="",
        )
        return self._joined(info, tasks, metric)

    def _joined(self, info: ObjectiveInfo, tasks: Iterable[str], metric: Metric) -> ItemScores:
        read = [self._task(task) for task in tasks]
        for task in read:
            self._require_mean(task, metric)
        return RecordedScores(
            info,
            {item: score for task in read for item, score in task.metrics[metric].items()},
            clusters={
                item: task.documents[item]
                for task in read
                for item in task.metrics[metric]
                if item in task.documents
            },
            asked={i: task.asked[task.document(i)] for task in read for i in task.metrics[metric]},
            texts={
                i: task.texts[task.document(i)]
                for task in read
                for i in task.metrics[metric]
                if task.document(i) in task.texts
            },
        )

    def _matching(self, pattern: str) -> list[str]:
        """Tasks with samples that a name means: itself, those of a group, or those it matches."""
        if pattern in self._samples:
            return [pattern]
        members = [
            task
            for child in self._result("group_subtasks", pattern) or ()
            for task in self._matching(child)
        ]
        return members or sorted(fnmatch.filter(self._samples, pattern))

    def _task(self, name: str) -> _Task:
        if name not in self._tasks:
            task = _Task.read(name, self._samples[name])
            task.metrics = {
                metric: scores
                for metric, scores in task.metrics.items()
                # A list may also be what a number about the whole set is made of.
                if not scores.keys() & task.documents or self._is_mean(task, metric)
            }
            self._tasks[name] = task
        return self._tasks[name]

    def _reported(self, task: _Task, metric: Metric) -> Any:
        return self._result("results", task.name, f"{metric.metric},{metric.filter}")

    def _is_mean(self, task: _Task, metric: Metric) -> bool:
        """Whether what lm-eval reported is the mean of the scores; False where it says nothing."""
        reported = self._reported(task, metric)
        is_number = isinstance(reported, float | int)
        return is_number and math.isclose(task.mean(metric), reported, rel_tol=1e-6, abs_tol=1e-9)

    def _result(self, *keys: str) -> Any:
        """What the newest results that know it say under nested keys; None if none does."""
        for results in self._results:
            value: Any = results
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    def _is_more_better(self, task: str, metric: str) -> bool:
        """Raises UsageError if the results do not say."""
        found = self._result("higher_is_better", task, metric)
        if found is None:
            raise UsageError(
                f"{self.name}: no results_*.json says whether more of {metric!r} of {task!r} is "
                "better. Keep it beside the samples, or give a recipe with --recipe."
            )
        return bool(found)

    def _require_mean(self, task: _Task, metric: Metric) -> None:
        """Refuse a metric that is a number about the whole set, where the results show that."""
        is_reported = isinstance(self._reported(task, metric), float | int)
        if is_reported and not self._is_mean(task, metric):
            raise UsageError(
                f"{self.name}: {metric} of {task.name!r} is {self._reported(task, metric):g} in "
                f"the results and the mean of its documents is {task.mean(metric):g}. Either it "
                "is no mean over documents, which cannot be compared item by item, or the samples "
                "are not those of the results."
            )


class _Task:
    """The samples of one task.

    Attributes:
        name: The task.
        metrics: Score by item, by metric; of metrics that all documents have.
        documents: The document of each item that is a part of one.
        asked: Digests of what is asked, by item and kind.
        texts: The first prompt by item.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.metrics: dict[Metric, dict[str, float]] = defaultdict(dict)
        self.documents: dict[str, str] = {}
        self.asked: dict[str, dict[str, str]] = {}
        self.texts: dict[str, str] = {}

    @classmethod
    def read(cls, name: str, path: Path) -> _Task:
        """Read a file of samples.

        Raises:
            RunError: The file is damaged, or a document has two scores of one metric.
        """
        task = cls(name)
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    task._add(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise RunError(
                        f"{path}, line {number} is no sample of lm-eval: "
                        f"{type(error).__name__}: {error}. Evaluate again with --log_samples."
                    ) from error
        lengths = {m: len(set(map(task.document, each))) for m, each in task.metrics.items()}
        most = max(lengths.values(), default=0)
        task.metrics = {m: scores for m, scores in task.metrics.items() if lengths[m] == most}
        return task

    def document(self, item: str) -> str:
        """The document that an item is, or is a part of."""
        return self.documents.get(item, item)

    def mean(self, metric: Metric) -> float:
        scores = self.metrics[metric]
        return math.fsum(scores.values()) / len(scores)

    def _add(self, sample: Mapping[str, Any]) -> None:
        item = f"{self.name}/{sample['doc_id']}"
        for name in sample.get("metrics") or ():
            found = _scores(item, sample[name])
            if found:
                scores = self.metrics[Metric(name, sample.get("filter", "none"))]
                if found.keys() & scores:
                    raise ValueError(f"document {sample['doc_id']} occurs twice")
                scores.update(found)
                self.documents.update({part: item for part in found if part != item})
        self.asked[item] = {
            what: sample[key] for key, what in _DIGESTS.items() if sample.get(key) is not None
        }
        first = (sample.get("arguments") or {}).get("gen_args_0") or {}
        if isinstance(first.get("arg_0"), str):
            self.texts[item] = first["arg_0"]


def _scores(document: str, value: Any) -> dict[str, float]:
    """Scores by item: of a number the document's, of a list of numbers its parts'."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, bool | int | float) and math.isfinite(each) for each in parts):
        return {}
    if not isinstance(value, list):
        return {document: float(value)}
    return {f"{document}.{number}": float(each) for number, each in enumerate(value)}


def _newest(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Results, newest first, and the newest samples of each task.

    Raises:
        RunError: There are none, or those of several models.
    """
    dated: list[tuple[str, str, Path]] = []
    results: list[tuple[str, Path]] = []
    for path in _files(folder):
        if found := _SAMPLES.fullmatch(path.name):
            dated.append((found["date"], found["task"], path))
        elif found := _RESULTS.fullmatch(path.name):
            results.append((found["date"], path))
    read = [read_record(path, dict[str, Any]) for _, path in sorted(results, reverse=True)]
    if not dated:
        raise RunError(_NO_SAMPLES.format(folder=folder, again=_again(read)))
    folders = sorted({path.parent for _, _, path in dated})
    if len(folders) > 1:
        raise RunError(
            f"{folder} has results of {len(folders)} models: "
            f"{', '.join(path.name for path in folders)}. Name the folder of one."
        )
    return read, {task: path for _, task, path in sorted(dated)}


_NO_SAMPLES = (
    "{folder} has lm-eval's results, but no scores by document, and means alone cannot be "
    "compared item by item. Evaluate again and keep them:\n"
    "  {again} --log_samples --output_path {folder}"
)


def _again(results: Sequence[Mapping[str, Any]]) -> str:
    """The command that made the results, as far as they say."""
    latest = results[0] if results else {}
    config = latest.get("config") or {}
    tasks = ",".join(latest.get("results") or ()) or "TASKS"
    arguments = config.get("model_args") or "pretrained=MODEL"
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"lm_eval --model {config.get('model', 'hf')} --model_args {arguments} --tasks {tasks}"
