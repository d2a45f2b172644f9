"""The settings under which a run was measured: `settings.jsonl`.

What decides scores is in a digest: base, form, curve, engine, objectives and items. What moves
them by rounding only is not: the size of batches, the device, versions of libraries. Nor is what
says how much is measured, and by whom: trials, budget, racing, rounds, actors and storage.
Measurements under such changes are used together, and `differences` says so.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from backtrack.records import Setting
from backtrack.run.files import append_line, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backtrack.records import Measurement
    from backtrack.run.directory import Run

SETTINGS = "settings.jsonl"
LIBRARIES = ("torch", "transformers", "peft", "lm-eval", "vllm")
"""What computes scores."""


def read_settings(run: Run) -> list[Setting]:
    """Every setting under which the run was measured, in the order of the first measurement.

    Raises:
        RunError: The file cannot be read, or a line is no setting.
    """
    return list(read_lines(run.path / SETTINGS, Setting))


def record_setting(run: Run, setting: Setting) -> Setting:
    """Write a setting, unless it is recorded; return the recorded one."""
    for known in read_settings(run):
        if known.model_copy(update={"created": setting.created}) == setting:
            return known
    append_line(run.path / SETTINGS, setting.model_dump_json())
    return setting


def summaries(run: Run) -> list[dict[str, Any]]:
    """What each setting is and has measured, newest first.

    Scores that no row counts belong to no recorded setting; the last row has them, where there are
    some. Scores of checkpoints that were replaced are in `replaced`.
    """
    current = run.checkpoint_digests()
    lines: dict[str, list[Measurement]] = defaultdict(list)
    for m in run.measurements():
        lines[m.setting].append(m)
    settings = read_settings(run)
    befores = [None, *settings[:-1]]
    rows = [
        _summary(setting, lines, current) | {"changed": ", ".join(_changed(setting, before))}
        for setting, before in reversed(list(zip(settings, befores, strict=True)))
    ]
    known = {digest for setting in settings for digest in setting.digests.values()}
    others = [m for digest, of_digest in lines.items() if digest not in known for m in of_digest]
    if others:
        rows.append(_UNKNOWN | _counts(others, current))
    return rows


_UNKNOWN = {
    "created": "unknown",
    **dict.fromkeys(
        ("objectives", "items", "form", "curve", "engine", "batch_size", "changed"), ""
    ),
}


def _summary(
    setting: Setting, lines: Mapping[str, Sequence[Measurement]], current: Mapping[int, str]
) -> dict[str, Any]:
    found = [m for digest in setting.digests.values() for m in lines.get(digest, ())]
    selection, report = (
        max((len(ids) for ids in of_split.values()), default=0)
        for of_split in (setting.items["selection"], setting.items["report"])
    )
    return {
        "created": setting.created,
        "objectives": ", ".join(setting.digests),
        "items": f"{selection}+{report}",
        "form": setting.form,
        "curve": setting.curve,
        "engine": str(setting.engine["kind"]),
        "batch_size": setting.batch_size,
        "digests": setting.digests,
        "versions": setting.versions,
    } | _counts(found, current)


def _changed(setting: Setting, before: Setting | None) -> Iterator[str]:
    """Name what a setting has otherwise than the one before it."""
    if before is None:
        return
    for name in ("base", "form", "curve", "engine", "seed", "items", "batch_size", "versions"):
        if getattr(setting, name) != getattr(before, name):
            yield name
    if setting.digests == before.digests and setting.items == before.items:
        yield "nothing that scores depend on"
    own, others = ({o.name: o.fingerprint for o in s.objectives} for s in (setting, before))
    yield from (f"without {name}" for name in others if name not in own)
    yield from (name for name in own if own[name] != others.get(name))


def _counts(found: Sequence[Measurement], current: Mapping[int, str]) -> dict[str, int]:
    """Points and scores of the checkpoints as they are, and scores of replaced ones."""
    now = [m for m in found if m.point.is_base or current.get(m.point.step) == m.checkpoint]
    num_scores = sum(len(m.item_ids) for m in now)
    return {
        "points": len({m.point for m in now}),
        "scores": num_scores,
        "replaced": sum(len(m.item_ids) for m in found) - num_scores,
    }


def differences(settings: Sequence[Setting], current: Setting) -> Iterator[str]:
    """Say what differs by rounding between lines of the same setting."""
    same = [s for s in settings if set(s.digests.values()) & set(current.digests.values())]
    sizes = sorted({str(s.batch_size) for s in same}, key=lambda size: (len(size), size))
    if len(sizes) > 1:
        listed = " and ".join(sizes)
        yield f"Measured with batch_size {listed}: scores may differ by rounding between them."
    for name in LIBRARIES:
        versions = sorted({s.versions[name] for s in same if name in s.versions})
        if len(versions) > 1:
            yield (
                f"Measured with {name} {' and '.join(versions)}: scores may differ slightly "
                "between them. To measure all with one, give the search another `search.seed`."
            )


def shared_texts(setting: Setting) -> Iterator[str]:
    """Say which objectives have items that share a passage, though the recipe does not say so."""
    for name, field in setting.shared_fields.items():
        yield (
            f"Items of {name} share long texts in the field {field!r} and count as independent: "
            f"intervals are too narrow. Add `cluster: {field}` to the objective."
        )
