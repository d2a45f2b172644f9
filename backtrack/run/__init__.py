"""A run on disk: one training run's directory, written by us or adopted from others."""
