"""PEFT adapters: which of their tensors move, from which values, and the effective weights."""
