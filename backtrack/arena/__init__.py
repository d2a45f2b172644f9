"""Several runs on one plane: trained where missing, measured and judged under one rule."""
