"""A program as something that runs: NumPy calls on kept buffers, or compiled."""
