"""Statistics over items and points. Pure numpy."""
