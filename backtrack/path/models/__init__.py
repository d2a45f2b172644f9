"""Base models, tokenizers and adapters from disk and back."""
