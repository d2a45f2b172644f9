"""Base models, tokenizers, adapters and checkpoints: read from disk and written back."""
