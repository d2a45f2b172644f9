"""Handing a point back: written as others load it, with a card the Hub reads, and pushed there."""

from backtrack.exporter.card import AsForm
from backtrack.exporter.push import push
from backtrack.exporter.write import Export, export

__all__ = ["AsForm", "Export", "export", "push"]
