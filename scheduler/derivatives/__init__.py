"""Jacobians and per-sample gradients out of values that are kept."""
