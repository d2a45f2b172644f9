"""The path between base and checkpoint: what a point's weights are, and a model that has them."""
