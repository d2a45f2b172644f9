"""What a reader of a run's scores should know of its checkpoints, in sentences.

The notes are kept in the run's manifest, printed by `backtrack adopt` and shown with each choice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import PlacementError
from backtrack.run.answers import answer_ends, load_tokenizer
from backtrack.run.checkpoint_reader import base_folder, headers, stored_dtype
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.foreign.formats import foreign_headers

if TYPE_CHECKING:
    from backtrack.run.directory import Run
    from backtrack.run.foreign.formats import Headers

_VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")
"""Names of the tensors that TRL and verl put beside a language model to train it by PPO."""
_VALUE_HEAD_FILE = "value_head.*"
"""Where LLaMA-Factory puts them."""


def adoption_notes(run: Run) -> tuple[str, ...]:
    """What is to be said of an adopted run's last checkpoint."""
    entry, folder = run.entry(run.final.step), run.folder(run.final.step)
    source = Path(entry.source or folder)
    found = foreign_headers(entry.storage, source) if entry.source else headers(folder)
    notes = (_rounding(run, found, source), _value_head(found, source))
    return (*(note for note in notes if note), *training_notes(run))


def _rounding(run: Run, found: Headers, source: Path) -> str | None:
    """That a whole model is stored in a wider dtype than it is loaded in."""
    stored, live = stored_dtype(found.values()), str(run.base.dtype)
    if live == "auto":
        live = stored_dtype(headers(base_folder(run.base)).values())
    if is_adapter(source) or stored != "float32" or live not in {"bfloat16", "float16"}:
        return None
    return (
        f"The checkpoints are stored in float32 and their base in {live}, so points are rounded "
        f"to {live}. Keep the checkpoints' values with `--dtype float32`."
    )


def _value_head(found: Headers, source: Path) -> str | None:
    """That a value head beside the language model is left out."""
    names = [name for name in sorted(found) if _VALUE_HEAD.search(name)]
    names += sorted(path.name for path in source.glob(_VALUE_HEAD_FILE))
    if not names:
        return None
    return (
        f"The checkpoints have a value head ({names[0]}), which is no part of a language model: "
        "it is left out, as transformers and PEFT leave it out."
    )


def training_notes(run: Run) -> tuple[str, ...]:
    """That answers end at tokens of the base, the tokenizer or the template too."""
    try:
        ends = answer_ends(run, load_tokenizer(run))
    except PlacementError:
        return ()  # opening the run names the cause
    return (str(ends),) if ends.added else ()
