"""Write points of the measured front as adapters of one base, ready to be served together.

    FOLDER/manifest.json        the points, with what each measured
    FOLDER/adapters/NAME/       an adapter each, written and checked as any export
    FOLDER/serve-vllm.sh        one vLLM server for all; a request names a point as its model
    FOLDER/mergekit/NAME.yaml   the same point as whole weights, for who merges by mergekit
    FOLDER/README.md            a table, example requests, scales for llama.cpp

Promised: the folder appears whole or not at all. Every point is one that was measured on all
selection items and is on the front; the choice is among them.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack import formatting
from backtrack.errors import UsageError
from backtrack.evaluate.vllm.adapters import allowed_rank, target_modules, why_not_in_vllm
from backtrack.exporter.earlier import recorded
from backtrack.exporter.new_folder import require_new, whole_folder
from backtrack.exporter.write import export, has_adapter
from backtrack.records import ROLES
from backtrack.records.export import ServedFront, ServedPoint
from backtrack.run.checkpoint_reader import base_folder, headers, stored_dtype
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.point import Point
    from backtrack.records.selection import Candidate, Selection
    from backtrack.run.directory import Run

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PORT = 8000


def export_front(
    run: Run,
    num_points: int,
    folder: str | Path,
    *,
    device: str = "auto",
    command: str = "",
    on_stage: Callable[[str], None] = lambda _what: None,
) -> ServedFront:
    """Write points of the front as adapters that one base serves.

    Args:
        run: A run of adapters with a selection.
        num_points: Number of points; fewer if the front has no more.
        folder: A new or empty folder, or one that has these points already.
        device: A torch device; `auto` is the first GPU, else the CPU.
        command: The command that repeats this export.
        on_stage: Called with a description as each stage begins.

    Returns:
        What was written.

    Raises:
        UsageError: There is no selection, the front has no point but the base, the folder has
            something else, or the run has no adapter to export.
        ExportError: Loaded by stock libraries, an adapter would be another model.
    """
    folder = Path(folder)
    selection = run.selection()
    if selection is None:
        raise UsageError(
            f"{run.path} has no front yet. Measure one: {formatting.command('select', run.path)}."
        )
    chosen = spread(selection, num_points)
    earlier = _earlier(run, selection, chosen, folder)
    if earlier:
        logger.warning("%s has these points already: it was left as it is", folder)
        return earlier
    require_new(folder)
    with whole_folder(folder) as partial:
        for candidate in chosen:
            adapter = partial / "adapters" / name_of(candidate.point)
            on_stage(f"writing {candidate.point}")
            export(run, candidate.point, adapter, form="adapter", device=device, command=command)
        front = _described(run, selection, chosen, partial)
        _write_files(front, partial, _dtype_of_base(run))
    return front


def _earlier(
    run: Run, selection: Selection, chosen: Sequence[Candidate], folder: Path
) -> ServedFront | None:
    """What a folder has, if that is these points as they would be written now."""
    adapters = {name_of(each.point): each.point for each in chosen}
    has_all = all(has_adapter(run, p, folder / "adapters" / n) for n, p in adapters.items())
    found = recorded(folder / MANIFEST, ServedFront) if has_all else None
    return found if found and found == _described(run, selection, chosen, folder) else None


def name_of(point: Point) -> str:
    """The name of a point in files and requests."""
    profile = "" if point.profile == "uniform" else f"-{point.profile}"
    text = f"step-{point.step}-alpha-{point.alpha:g}{profile}"
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-")


def spread(selection: Selection, num_points: int) -> tuple[Candidate, ...]:
    """Choose points of the front: the choice, then always the one farthest from those taken.

    The base is no adapter, and is served by its own name. Distances are in the units of the roles.

    Args:
        selection: The selection.
        num_points: Number of points at most.

    Returns:
        The points by their target score, ascending.

    Raises:
        UsageError: No point but the base is on the front.
    """
    left = [
        c
        for c in selection.candidates
        if not c.point.is_base
        and c.share == 1
        and (c.is_on_front or c.point == selection.chosen.canonical)
    ]
    if not left:
        raise UsageError(
            f"the front of {selection.run} has no point but the base: there is nothing to export. "
            "Measure more points: `backtrack search --set search.trials=20`."
        )
    first = next((c for c in left if c.point == selection.chosen.canonical), left[-1])
    taken = [first]
    left.remove(first)
    while left and len(taken) < num_points:
        farthest = max(left, key=lambda c: min(_distance(c, other) for other in taken))
        taken.append(farthest)
        left.remove(farthest)
    return tuple(sorted(taken, key=lambda c: (c.smoothed_target, c.point.alpha)))


def _distance(one: Candidate, other: Candidate) -> float:
    return math.hypot(
        one.smoothed_target - other.smoothed_target, one.smoothed_general - other.smoothed_general
    )


def _described(
    run: Run, selection: Selection, chosen: Sequence[Candidate], folder: Path
) -> ServedFront:
    served = [
        ServedPoint(
            name=name_of(candidate.point),
            folder=f"adapters/{name_of(candidate.point)}",
            point=candidate.point,
            is_chosen=candidate.point == selection.chosen.canonical,
            scores=candidate.scores,
            target=candidate.smoothed_target,
            general=candidate.smoothed_general,
            utility=candidate.smoothed,
        )
        for candidate in chosen
    ]
    reasons = {why_not_in_vllm(folder / each.folder) for each in served}
    is_scalable = run.manifest.method.kind == "lora" and not any(reasons)
    return ServedFront(
        run=run.manifest.name,
        base=run.base.model,
        weight=selection.weight,
        axes=selection.axes,
        points=tuple(_scaled(each, served) if is_scalable else each for each in served),
        unserved=" or ".join(sorted(reasons - {""})),
    )


def _scaled(point: ServedPoint, all_points: Sequence[ServedPoint]) -> ServedPoint:
    """The point, with the strongest adapter of its step and profile, and the scale that makes it.

    A LoRA moves its weights in proportion to alpha, so one adapter is all strengths of its step.
    """
    same = [
        p
        for p in all_points
        if (p.point.step, p.point.profile) == (point.point.step, point.point.profile)
    ]
    strongest = max(same, key=lambda p: p.point.alpha)
    scale = point.point.alpha / strongest.point.alpha
    return point.model_copy(update={"scaled": strongest.name, "scale": scale})


def _write_files(front: ServedFront, folder: Path, dtype: str) -> None:
    write_atomically(folder / MANIFEST, front.model_dump_json(indent=2) + "\n")
    if not front.unserved:
        text = f'#!/bin/sh\ncd "$(dirname "$0")" && exec {_vllm_command(front, folder)}\n'
        write_atomically(folder / "serve-vllm.sh", text)
        (folder / "serve-vllm.sh").chmod(0o755)
    (folder / "mergekit").mkdir()
    for each in front.points:
        write_atomically(folder / "mergekit" / f"{each.name}.yaml", _mergekit(front, each, dtype))
    write_atomically(folder / "README.md", _readme(front))


def _vllm_command(front: ServedFront, folder: Path) -> str:
    """The command of a vLLM server of all points; paths are relative to the exported folder.

    Only the adapters' own modules are wrapped: a wrapped head breaks the likelihoods of prompts.
    """
    adapters = [folder / each.folder for each in front.points]
    targets = sorted({name for adapter in adapters for name in target_modules(adapter)})
    return shlex.join([
        "vllm", "serve", front.base, "--port", str(_PORT),
        "--enable-lora", "--max-loras", str(len(adapters)),
        "--max-lora-rank", str(max(map(allowed_rank, adapters))),
        "--lora-target-modules", *targets,
        "--lora-modules", *(f"{each.name}={each.folder}" for each in front.points),
    ])  # fmt: skip


def _dtype_of_base(run: Run) -> str:
    """The dtype that the base is loaded in."""
    if run.base.dtype != "auto":
        return run.base.dtype
    return stored_dtype(headers(base_folder(run.base)).values())


def _mergekit(front: ServedFront, point: ServedPoint, dtype: str) -> str:
    """A configuration that merges a point's adapter into the base."""
    # Without the dot, mergekit takes a path of two parts for a repository and asks the Hub for it.
    model = json.dumps(f"{front.base}+./{point.folder}")
    return (
        f"# {point.point} as whole weights, run in the exported folder:\n"
        f"#     {_merge_command(point.name)}\n"
        f"merge_method: linear\ndtype: {dtype}\n"
        f"models:\n  - model: {model}\n    parameters: {{weight: 1.0}}\n"
    )


def _merge_command(name: str) -> str:
    """The command that merges a point into `OUT`, run in the exported folder.

    mergekit has PEFT merge an adapter first, in a folder that must be named: in this one, since it
    is known there by the adapter's relative path. In fp32, for a single rounding.
    """
    return (
        f"mergekit-yaml mergekit/{name}.yaml OUT "
        "--lora-merge-cache mergekit/merged --lora-merge-dtype float32"
    )


def _readme(front: ServedFront) -> str:
    target, general = (front.axes[role].unit for role in ROLES)
    rows = [
        f"| `{p.name}`{' (the choice)' if p.is_chosen else ''} | {p.point} "
        f"| {formatting.number(p.target, target)} | {formatting.number(p.general, general)} "
        f"| {formatting.number(p.utility, formatting.POINTS)} |"
        for p in front.points
    ]
    return "\n".join([
        f"# Points of the front of {front.run}",
        "",
        f"Adapters of one base, `{front.base}`, between what it knew and what the run learned. "
        "Scores are of the selection items, smoothed over all measured points; the utility is at "
        f"weight {front.weight:g}.",
        "",
        f"| model | point | target ({target}) | general ({general}) | utility |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *_serving(front),
        *_scales(front),
        "## mergekit",
        "",
        f"`{_merge_command('NAME')}`, run in this folder, merges a point into the base.",
        "",
    ])  # fmt: skip


def _serving(front: ServedFront) -> list[str]:
    if front.unserved:
        return ["## vLLM", "", f"vLLM does not read {front.unserved}: merge these points.", ""]
    requests = []
    for name in (*(each.name for each in front.points), front.base):
        body = json.dumps({"model": name, "prompt": "PROMPT", "max_tokens": 64})
        requests.append(
            f"curl http://localhost:{_PORT}/v1/completions -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)}"
        )
    return [
        "## vLLM", "", "`sh serve-vllm.sh` serves all of them and the base; a request names one:",
        "", "```bash", *requests, "```", "",
    ]  # fmt: skip


def _scales(front: ServedFront) -> list[str]:
    scaled = [each for each in front.points if each.scaled is not None]
    if not scaled:
        return []
    adapters = list(dict.fromkeys(each.scaled for each in scaled))
    lines = [
        f"| `{each.name}` | `adapters/{each.scaled}` | {adapters.index(each.scaled)} "
        f"| {each.scale:.6g} |"
        for each in scaled
    ]
    return [
        "## llama.cpp", "",
        "One converted adapter a step (`convert_lora_to_gguf.py`) is all its strengths: start the "
        "server with a `--lora` for each adapter below, in this order, and give a request "
        '`"lora": [{"id": ID, "scale": SCALE}]`.',
        "", "| point | adapter | id | scale |", "|---|---|---|---|", *lines, "",
    ]  # fmt: skip
