"""Compare several runs under one rule: train what is missing, measure, rank."""
