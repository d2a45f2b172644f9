"""The path between base and checkpoint: the weights of a point, and a model set to them."""
