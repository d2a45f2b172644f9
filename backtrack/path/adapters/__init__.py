"""Adapters of PEFT: which tensors move, from where, and what weights they come to."""
