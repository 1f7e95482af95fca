"""Differentially private steps: per-sample clipping and Gaussian noise. No accounting: that is for libraries made for it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import GraphError
from .jacobian import Array


@dataclass(frozen=True)
class Privacy:
    """How gradients are clipped and blurred.

    With per-sample gradients ``gᵢ`` of a mini-batch ``B``, `clip` C, `noise_multiplier` σ and the batch size b that the
    optimizer was made with, the gradient that the update rule sees is ``(Σ_{i∈B} gᵢ min(1, C/‖gᵢ‖) + σ C z) / b``, where `z` has
    one independent standard normal number per entry, drawn for each update anew; the norm is that of all trained variables
    together. A last batch of fewer samples is divided by b too.

    Parameters
    ----------
    clip : float
        C, positive.
    noise_multiplier : float
        σ, at least 0.
    batch_size : int
        b.
    seed : int, optional
        The noise of update t is drawn by ``np.random.default_rng([seed, t])``: the same for every grain, shard and worker. Who
        knows it can take the noise away: without one it is drawn from the system's source of secrets.

    Notes
    -----
    M. Abadi et al., *Deep learning with differential privacy*, CCS 2016, algorithm 1, with another sampling.
    """

    clip: float
    noise_multiplier: float
    batch_size: int
    seed: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _number(self.clip) or self.clip <= 0:
            raise GraphError(f"per_sample_clip must be a positive number, not {self.clip!r}")
        if not _number(self.noise_multiplier) or self.noise_multiplier < 0:
            raise GraphError(f"noise_multiplier must be a number, at least 0, not {self.noise_multiplier!r}")
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(128))
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise GraphError(f"noise_seed must be a whole number, at least 0, not {self.seed!r}")

    def clipped(self, gradient: Array) -> Array:
        """Return one sample's gradient, no longer than `clip`."""
        return gradient * min(1.0, self.clip / max(float(np.linalg.norm(gradient)), self.clip))

    def noise(self, size: int, update: int) -> Array:
        """Return what is added to the mean gradient at update number `update` (from 1), in the order of the variables."""
        scale = self.noise_multiplier * self.clip / self.batch_size
        assert self.seed is not None
        return np.random.default_rng([self.seed, update]).standard_normal(size) * scale


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))
