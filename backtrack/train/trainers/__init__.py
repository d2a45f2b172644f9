"""From a recipe to a trainer of TRL, and through its steps."""
