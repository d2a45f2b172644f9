"""What adopting other trainers' checkpoints takes: find them, and hold them to one rule."""
