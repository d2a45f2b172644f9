"""Find how far along a fine-tuning path to stand, without training again."""
