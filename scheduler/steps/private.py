"""Differentially private steps: clipped sums straight from the factors, noise at the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowgrad.ops.loss import sample_sum
from flowgrad.optim import Privacy
from flowgrad.program import Instr
from flowgrad.typing import Array

from ..derivatives import LastEdges, clip_weights, norms_of, run_all


@dataclass(frozen=True, eq=False)
class PrivateStep:
    """What an optimizer step needs besides its program.

    Attributes
    ----------
    instrs : tuple of Instr
        Forward and backward up to the last edges, numbered: `leaves`, the seed, their results.
    leaves : tuple of int
        Which inputs of the program they read.
    order : int array
        For each entry of the flat parameter vector, its place in the order of the variables.
    size : int
        Entries of all variables.
    """

    privacy: Privacy
    instrs: tuple[Instr, ...]
    ends: LastEdges
    leaves: tuple[int, ...]
    loss: int
    order: Array
    size: int

    def gradient(self, inputs: Sequence[Array], samples: int, batch: int) -> tuple[Array, float]:
        """Return a shard's share of the clipped mean gradient, and of the mean loss of `batch` samples."""
        dtype = inputs[0].dtype
        env = run_all(self.instrs, *(inputs[k] for k in self.leaves), np.ones((1, 1, 1), dtype))
        loss = env[self.loss]
        total = sample_sum(loss, samples)
        if not self.ends.edges:
            return np.zeros(len(self.order), dtype), total / batch
        factors = self.ends.factors(0, samples, env)
        weights = clip_weights(norms_of([factors]), self.privacy.clip) / self.privacy.batch_size
        return factors.sum(weights)[0], total / batch

    def blurred(self, gradient: Array, update: int) -> Array:
        """Return the mean gradient with the noise of update number `update`."""
        noise = self.privacy.noise(self.size, update)[self.order]
        return gradient + noise.astype(gradient.dtype)
