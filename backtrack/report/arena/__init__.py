"""Report of an arena: figures, rows and page."""
