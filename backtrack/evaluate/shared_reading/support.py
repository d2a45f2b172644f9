"""Whether a live model can read trees: by its configuration first, then by trial."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from backtrack.evaluate.shared_reading.attention import obstacle
from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree
from backtrack.evaluate.shared_reading.reader import TreeReader

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()
MOST_SHARE = {"full": 0.02, "half": 0.25}
"""Of the difference that a branch beside it would make if it were seen, by precision.

In bfloat16 other batches alone change logits by up to a tenth of their spread (SmolLM2-135M, with
LoRA), a branch that is seen by 0.5 to 2 times it, and wrong positions by a third or more."""


@torch.inference_mode()
def reads_trees(model: Any) -> bool:
    """Whether a model reads branches beside each other as it reads each by itself.

    Where it does not, the reason is logged, once for each kind of model.

    Args:
        model: A live model in evaluation mode.
    """
    reason = obstacle(model) or _trial(model)
    if reason is None:
        return True
    kind = model.config.model_type, reason
    if kind not in _said:
        _said.add(kind)
        _log.warning(
            "Prompts that share their beginning are each read whole: %s cannot share it, as %s.",
            *kind,
        )
    return False


def _trial(model: Any) -> str | None:
    """What is wrong with how a model reads two branches; None if nothing is."""
    tokens = [token % model.config.get_text_config(decoder=True).vocab_size for token in range(60)]
    trunk = tokens[5:10]
    short, long = [*trunk, *tokens[40:46]], [*trunk, *tokens[10:30]]
    tree = PrefixTree.of([long, short])
    try:
        reader = TreeReader(model, tree)
        reader.read(range(len(trunk)))
        nodes = range(len(trunk), len(tree.tokens))
        columns = [node - nodes.start for node in tree.path(tree.last[1], 6)]
        packed = reader.read(nodes, columns)[0]
        whole = model(input_ids=torch.tensor([short], device=model.device)).logits[0, len(trunk) :]
        leaked = [*long, *short[len(trunk) :]]
        seen = model(input_ids=torch.tensor([leaked], device=model.device)).logits[0, len(long) :]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a model of somebody else's raises
        return f"it does not take packed rows ({type(error).__name__}: {error})"
    precision = "full" if torch.finfo(whole.dtype).bits >= 32 else "half"
    if _difference(packed, whole) > MOST_SHARE[precision] * _difference(seen, whole):
        return "packed rows give it other logits"
    return None


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to the spread of the expected logits over the vocabulary."""
    expected = expected.float()
    spread = (expected - expected.mean(-1, keepdim=True)).norm()
    return float((found.float() - expected).norm() / spread)
