"""Prompts for a diagnosis, from the objectives or from files.

A prompt is what its objective asks, without the answer and without few-shot examples; for running
text it is a window. Prompts are drawn once from a seed, evenly over the objectives of a role; the
draw does not depend on the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.errors import UsageError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.objectives.documents import JSONL_SUFFIXES, load_records
from backtrack.evaluate.objectives.items import digest
from backtrack.records import ROLES
from backtrack.records.diagnosis import PromptSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from backtrack.recipe import Recipe
    from backtrack.records import Role

FIELDS = ("prompt", "question", "text")
"""Fields that may hold the prompt of a record; the first one present is read."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of one role, encoded.

    Attributes:
        role: The role they measure.
        source: The file, or the names of the objectives.
        ids: Token ids of each prompt.
    """

    role: Role
    source: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def record(self) -> PromptSource:
        return PromptSource(
            role=self.role,
            source=self.source,
            num_prompts=len(self.ids),
            num_tokens=sum(map(len, self.ids)),
        )

    @property
    def digest(self) -> str:
        return digest(self.role, self.ids)

    def batches(self, size: int, device: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and attention mask, each [rows, longest], in batches of similar length."""
        import torch

        order = sorted(range(len(self.ids)), key=lambda i: (-len(self.ids[i]), i))
        for start in range(0, len(order), size):
            rows = [self.ids[i] for i in order[start : start + size]]
            ids = torch.zeros((len(rows), len(rows[0])), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
                mask[index, : len(row)] = 1
            yield ids.to(device), mask.to(device)


def find_prompts(
    recipe: Recipe | None,
    files: Mapping[Role, Path],
    placement: Any,
    num_prompts: int,
    seed: int,
) -> tuple[Prompts, ...]:
    """Find the prompts of each role: in its file if given, else in its objectives.

    Args:
        recipe: The recipe with the objectives.
        files: Files by role: one prompt a line, or JSON lines with a field `prompt`, `question`
            or `text`.
        placement: The placed model and its tokenizer.
        num_prompts: The most prompts of a role.
        seed: Seed of the draw.

    Raises:
        UsageError: A role has no prompts.
        ObjectiveError: Documents cannot be read.
    """
    from backtrack.evaluate.torch_model import context_tokens

    found = []
    for role in ROLES:
        generator = np.random.default_rng([seed, ROLES.index(role)])
        if role in files:
            source, texts = str(files[role]), _drawn(_of_file(files[role]), num_prompts, generator)
        else:
            source, texts = _of_objectives(recipe, role, placement, num_prompts, generator)
        limit = context_tokens(placement.model)
        encoded = (encode(placement.tokenizer, text) for text in texts)
        ids = tuple(tuple(row[:limit]) for row in encoded if row)
        if not ids:
            raise UsageError(
                f"there are no {role} prompts to read. Give a recipe with a {role} objective that "
                f"has documents, or a file of prompts: --prompts {role}=FILE."
            )
        found.append(Prompts(role, source, ids))
    return tuple(found)


def _of_objectives(
    recipe: Recipe | None,
    role: Role,
    placement: Any,
    num_prompts: int,
    generator: np.random.Generator,
) -> tuple[str, list[str]]:
    if recipe is None:
        return "", []
    of_role = recipe.model_copy(
        update={"objectives": tuple(o for o in recipe.objectives if o.role == role)}
    )
    built = build_objectives(of_role, placement.tokenizer)
    prompts = {o.info.name: o.prompts() for o in built}
    readable = {name: texts for name, texts in prompts.items() if texts}
    found: list[str] = []
    for index, texts in enumerate(readable.values()):
        num_left, num_objectives = num_prompts - len(found), len(readable) - index
        found += _drawn(texts, -(-num_left // num_objectives), generator)
    return ", ".join(readable), found


def _drawn(texts: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    order = generator.permutation(len(texts))[:count]
    return [texts[i] for i in sorted(order)]


def _of_file(path: Path) -> list[str]:
    if path.suffix not in JSONL_SUFFIXES:
        try:
            return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    records = load_records(str(path), None, "train")
    field = next((field for field in FIELDS if field in records[0]), None)
    if field is None:
        raise UsageError(
            f"{path}: its records have none of the fields {', '.join(FIELDS)}. Rename one."
        )
    return [str(record.get(field, "")) for record in records]
