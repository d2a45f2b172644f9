"""Estimate what training a recipe needs, without loading weights."""
