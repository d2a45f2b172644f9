"""Train a recipe: data, rewards, TRL's trainers, probe evaluations and resuming."""
