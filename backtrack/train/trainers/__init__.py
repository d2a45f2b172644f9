"""Train a recipe: data, rewards, TRL's SFT or GRPO trainer, probe evaluations and resuming."""
