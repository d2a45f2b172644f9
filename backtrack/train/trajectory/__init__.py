"""Checkpoints while training goes on, in any loop of a transformers Trainer."""
