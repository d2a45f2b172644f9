"""Save checkpoints while any transformers Trainer, or a loop of your own, trains."""
