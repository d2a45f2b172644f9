"""Checkpoints in other trainers' formats, parsed as data: nothing in them runs."""
