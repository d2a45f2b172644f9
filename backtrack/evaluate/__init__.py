"""What is measured: objectives, from a recipe to one score an item."""
