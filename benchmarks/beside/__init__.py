"""The nets of examples/ written by the same rules in PyTorch and Keras; `benchmarks/lines.py` counts and runs them."""
