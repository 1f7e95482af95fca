"""A training, from `fit` to its last checkpoint."""
