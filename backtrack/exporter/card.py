"""The model card of an export (README.md), with the metadata that the Hub reads.

The metadata names the base, the library and the tags, and lists the results on report items, each
with its interval, as `model-index`. A base in a local folder is named in the text only: the
metadata takes names on the Hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.evaluate.vllm.adapters import why_not_in_vllm
from backtrack.records import ROLES
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.point import Point
    from backtrack.records import Form, Interval, Measurement
    from backtrack.records.export import AsForm
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run

PLACEMENT_FORMS: dict[AsForm, Form] = {"adapter": "attached", "merged": "merged"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Attributes:
        run: The run.
        point: The exported point.
        form: `adapter` or `merged`.
        selection: The run's recorded selection; None if there is none.
        measured: Measurements repeated in the form of this export.
        command: The command that repeats this export; empty if unknown.
        loader: Class of transformers that loads the model, or the base of an adapter.
        rows: Rows of the embedding that the base must be given before an adapter is loaded; None
            if it has them.
    """

    run: Run
    point: Point
    form: AsForm
    selection: Selection | None = None
    measured: tuple[Measurement, ...] = ()
    command: str = ""
    loader: str = "AutoModelForCausalLM"
    rows: int | None = None

    def text(self) -> str:
        """The card, in Markdown."""
        return "\n".join(["---", self._head(), "---", "", *self._body()])

    @property
    def _is_chosen(self) -> bool:
        return self.selection is not None and self.selection.chosen == self.point.canonical

    @property
    def _kind(self) -> str:
        return self.run.manifest.method.kind

    def _head(self) -> str:
        """The metadata, as YAML."""
        from huggingface_hub import ModelCardData

        base = self.run.base.model
        is_on_hub = _HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
        results = list(self._results())
        data = ModelCardData(
            base_model=base if is_on_hub else None,
            base_model_relation=("adapter" if self.form == "adapter" else "finetune")
            if is_on_hub
            else None,
            library_name="peft" if self.form == "adapter" else "transformers",
            pipeline_tag="text-generation",
            tags=["backtrack", "fine-tuned" if self._kind == "full" else self._kind],
            model_name=f"{self.run.manifest.name}, {self.point}" if results else None,
            eval_results=results or None,
        )
        return str(data.to_yaml()).strip()

    def _results(self) -> Iterator[Any]:
        """Each objective on the report items, and the mean of roles with several objectives."""
        selection = self.selection
        if selection is None or not self._is_chosen or "chosen" not in selection.report:
            return
        row, base = selection.report["chosen"], selection.report["base"]
        for o in selection.objectives:
            num_items = selection.num_items.get(o.name, {}).get("report", 0)
            unit, factor = formatting.shown_unit(o.unit)
            numbers = _numbers(factor * row.scores[o.name], factor * base.scores[o.name])
            if o.name in row.intervals:
                numbers |= _bounds(row.intervals[o.name], factor)
            name = f"{o.name} ({unit})"
            numbers |= {"role": o.role, "kind": o.kind, "items": num_items}
            yield _result(o.name, name, numbers)
        for role in ROLES:
            if sum(o.role == role for o in selection.objectives) > 1:
                value, before = getattr(row, role), getattr(base, role)
                numbers = _numbers(value.estimate, before.estimate) | _bounds(value)
                name = f"{role} mean ({selection.axes[role].unit})"
                yield _result(f"{role} objectives", name, numbers | {"role": role})

    def _body(self) -> list[str]:
        base, name, point = self.run.base.model, self.run.manifest.name, self.point
        lines = [
            f"# {name}, {point}",
            "",
            f"The point at alpha {point.alpha:g} on the path from `{base}` to the checkpoint of "
            f"step {point.step} of the run `{name}` ({self._kind}), profile {point.profile}, "
            "found by backtrack.",
            "",
            *self._scores(),
            "## Loading",
            "",
            "```python",
            *self._loading(),
            "```",
            "",
        ]
        if self.command:
            lines += ["## Command", "", "```", self.command, "```", ""]
        return lines

    def _scores(self) -> list[str]:
        """The selection's results, and whether they were measured in the form of this export."""
        selection = self.selection
        if selection is None:
            return []
        lines = _measured_table(selection)
        if not self._is_chosen:
            lines += [f"This is not the chosen point of that selection ({selection.chosen}).", ""]
        if self.measured:
            lines += [
                "Measured again in the form of this export, since the selection was measured "
                f"{selection.form}:",
                "",
            ]
            for m in self.measured:
                lines.append(f"- {m.objective.name}: {sum(m.scores) / len(m.scores):.4g}")
            lines.append("")
        elif PLACEMENT_FORMS[self.form] != selection.form:
            lines += [f"Measured {selection.form} only, not in the form of this export.", ""]
        return lines

    def _loading(self) -> list[str]:
        """The lines of Python that load the export."""
        loader, tokenizer = self.loader, 'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
        if self.form == "merged":
            return [
                f"from transformers import {loader}, AutoTokenizer",
                f'model = {loader}.from_pretrained("THIS FOLDER")',
                tokenizer,
            ]
        resize = f"base.resize_token_embeddings({self.rows}, mean_resizing=False)"
        return [
            "from peft import PeftModel",
            f"from transformers import {loader}, AutoTokenizer, GenerationConfig",
            f"base = {loader}.from_pretrained({self.run.base.model!r})",
            *([resize] if self.rows else []),
            'base.generation_config = GenerationConfig.from_pretrained("THIS FOLDER")',
            'model = PeftModel.from_pretrained(base, "THIS FOLDER")',
            tokenizer,
        ]


def _numbers(value: float, base: float) -> dict[str, Any]:
    return {"value": round(value, 4), "base": round(base, 4)}


def _bounds(interval: Interval, factor: float = 1.0) -> dict[str, float]:
    bounds = {"low": interval.low, "high": interval.high}
    return {name: round(factor * bound, 4) for name, bound in bounds.items()}


def _result(dataset: str, metric: str, numbers: dict[str, Any]) -> Any:
    """One result; the interval and the base's value are passed as arguments of the metric."""
    from huggingface_hub import EvalResult

    value = numbers.pop("value")
    low, high = numbers.pop("low", None), numbers.pop("high", None)
    has_interval = low is not None and high is not None
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset,  # the Hub distinguishes results by this field, not by the name
        dataset_name=dataset,
        metric_type="score",
        metric_name=metric,
        metric_value=value,
        metric_args=numbers | ({"interval_95": [low, high]} if has_interval else {}),
    )


def _measured_table(selection: Selection) -> list[str]:
    """Table of base, chosen point and final checkpoint on the report items."""
    target, general = (selection.axes[role] for role in ("target", "general"))
    rows = [
        f"| {name} | {row.point} | {formatting.interval(row.target, target.unit)} "
        f"| {formatting.interval(row.general, general.unit)} |"
        for name, row in selection.report.items()
    ]
    return [
        f"Measured on items the search never saw (weight {selection.weight:g} on the target):",
        "",
        f"| | point | target ({target.unit}) | general ({general.unit}) |",
        "|---|---|---|---|",
        *rows,
        "",
        selection.verdict,
        "",
        f"{formatting.how_chosen(selection)} {formatting.how_claimed(selection)}",
        "",
    ]


def vllm_note(folder: Path) -> str:
    """A line for the card on whether vLLM reads the adapter; empty for a merged model."""
    if not is_adapter(folder):
        return ""
    unread = why_not_in_vllm(folder)
    if not unread:
        return "\nOne rank and scaling everywhere, so vLLM reads it too (`LoRARequest`).\n"
    return f"\nvLLM does not read {unread}: to serve this point there, export it merged.\n"
