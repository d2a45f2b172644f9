"""Measure points of a run on fixed items, each at most once."""
