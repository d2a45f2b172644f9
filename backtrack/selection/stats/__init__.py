"""Statistics over items and points. Pure: nothing is read or written."""
