"""Parse a recipe's YAML, and refuse with line and key what is YAML but never meant.

Refused: a key given twice, deep nesting, aliases that expand to very many values or contain
themselves, numbers that are not finite or have hundreds of digits, and lone surrogates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from backtrack.formatting import cut

if TYPE_CHECKING:
    from yaml.nodes import Node

MAX_DEPTH = 50
MAX_VALUES = 50_000
"""Most keys and values of a recipe; an alias counts as all that it repeats."""
MAX_DIGITS = 300
_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


class RefusedError(yaml.YAMLError):
    """YAML that a recipe must not contain; the message begins with its line and key."""


def parse_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        RefusedError: It is YAML that a recipe must not contain.
        yaml.YAMLError: It is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # a subclass of SafeLoader


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which checks each node when it is composed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._keys: list[str] = []
        self._num_values: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose and check a node, which is the value of key `index` in `parent`."""
        key = index.value if isinstance(index, yaml.ScalarNode) else index
        self._keys.append("" if key is None else str(key))
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if len(self._keys) > MAX_DEPTH:
            self._refuse(line, f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        if node is not None and not isinstance(event, yaml.AliasEvent):
            self._check(node, line)
        if node is not None and node not in self._num_values:
            self._refuse(line, "the alias contains itself")
        self._keys.pop()
        return node

    def _check(self, node: Node, line: int) -> None:
        children: list[Node] = []
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node, line)
        elif isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value
        self._num_values[node] = 1 + sum(self._num_values[child] for child in children)
        if self._num_values[node] > MAX_VALUES:
            self._refuse(line, f"more than {MAX_VALUES:,} values, counting what aliases repeat")

    def _check_scalar(self, node: yaml.ScalarNode, line: int) -> None:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            self._refuse(line, f"a number of more than {MAX_DIGITS} digits")
        try:
            node.value.encode()
            value = self.construct_object(node) if node.tag in _NUMBERS else None
        except UnicodeEncodeError:
            self._refuse(line, "a lone surrogate, which is not Unicode text")
        except (ValueError, OverflowError) as error:
            self._refuse(line, str(error))
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(line, f"{node.value} is not a finite number")

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                self._keys.append(key.value)
                first = lines[key.tag, key.value]
                self._refuse(line, f"the key is given twice, first in line {first}")
            lines[key.tag, key.value] = line

    def _refuse(self, line: int, fault: str) -> NoReturn:
        key = cut(".".join(filter(None, self._keys)))
        raise RefusedError(": ".join(filter(None, [f"line {line}", key, fault])))
