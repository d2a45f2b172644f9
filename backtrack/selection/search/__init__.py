"""The search: which point is measured next, on how many items."""
