"""flowgrad beside PyTorch, JAX, scikit-learn, NumPy and numba, and the times of its own parts: ``python -m benchmarks``."""
