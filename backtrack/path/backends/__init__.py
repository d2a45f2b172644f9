"""Backends: what holds a model at a point, an adapter attached or weights merged."""
