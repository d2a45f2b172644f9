"""Train a run with a dense trajectory: by recipe, or beside any transformers Trainer."""
