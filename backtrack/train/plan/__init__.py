"""What a recipe takes, told without weights."""
