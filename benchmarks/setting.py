"""The task that everybody is measured on: a 784-90-10 net on MNIST, float32, Adam without bias correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LAYERS = (784, 90, 10)
RATE, BETA_1, BETA_2, EPSILON = 0.01, 0.9, 0.99, 1e-10
BATCHES = (32, 256, 4096)
# A multiple of every batch size, so that nobody meets a smaller last batch: some would compile it separately.
SAMPLES = 57_344


@dataclass(frozen=True)
class Task:
    """Samples, class indices, first weights (as for ``x @ w1 + b1``) and the batch size."""

    x: Array
    y: Array
    weights: tuple[Array, Array, Array, Array]
    batch: int

    def order(self, epoch: int) -> Array:
        """Return the rows of every mini-batch of an epoch, ``(steps, batch)``; everybody shuffles."""
        return np.random.default_rng([0, epoch]).permutation(len(self.x)).reshape(-1, self.batch)


def load_task(batch: int) -> Task:
    """Return the task, with the data set that comes with flowgrad."""
    from flowgrad.data import load_mnist

    data = load_mnist(np.float32)
    inputs, hidden, classes = LAYERS
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return random.normal(0.0, 0.05, shape).astype(np.float32)

    weights = (normal(inputs, hidden), normal(hidden), normal(hidden, classes), normal(classes))
    return Task(data.x_train[:SAMPLES].copy(), data.y_train[:SAMPLES].copy(), weights, batch)
