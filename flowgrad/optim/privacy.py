"""Differentially private steps: per-sample clipping and Gaussian noise. No accounting: that is for libraries made for it."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

import numpy as np

from ..inputs import integer, real
from ..typing import Array
from .norms import norm_of


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
        real(self.clip, "per_sample_clip", 0, above=True)
        real(self.noise_multiplier, "noise_multiplier", 0)
        seed = secrets.randbits(128) if self.seed is None else integer(self.seed, "noise_seed", 0)
        object.__setattr__(self, "seed", seed)

    def clipped(self, gradient: Array) -> Array:
        """Return one sample's gradient, no longer than `clip`."""
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(gradient))
        norm = norm_of(gradient) if math.isinf(norm) else norm
        return gradient * min(1.0, self.clip / max(norm, self.clip))

    def noise(self, size: int, update: int) -> Array:
        """Return what is added to the mean gradient at update number `update` (from 1), in the order of the variables."""
        scale = self.noise_multiplier * self.clip / self.batch_size
        assert self.seed is not None
        return np.random.default_rng([self.seed, update]).standard_normal(size) * scale
