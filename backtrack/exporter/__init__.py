"""Export a point: write it as other tools load it, with a model card, and push it to the Hub."""

from backtrack.exporter.front import export_front
from backtrack.exporter.push import push
from backtrack.exporter.write import Export, export
from backtrack.records.export import AsForm

__all__ = ["AsForm", "Export", "export", "export_front", "push"]
