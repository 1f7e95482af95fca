"""Derivatives kept as factors: per-sample gradients and Jacobians by one flat vector, and what follows from them unbuilt.

A derivative is a sum of *shares*, one for each use of the variables; a share is, per row ``v`` and sample ``n``, the outer
product ``delta[v, n] ⊗ row[n]``, laid row-major at a place in the vector. With two shares at one place (shared weights) the
cross terms count: ``⟨Σᵢ δᵢ⊗xᵢ, Σⱼ δⱼ⊗xⱼ⟩ = Σᵢⱼ (δᵢ·δⱼ)(xᵢ·xⱼ)``. Shares whose places overlap without being equal are built
explicitly, a stretch of the vector at a time.

The identity for norms is I. Goodfellow's, *Efficient per-example gradient computations*, arXiv:1510.01799, 2015.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from ..typing import Array
from .base import add_at
from .shares import OuterShare, add_share, cut, write_share

# Entries of an explicit stretch, and samples in a tile of a matrix of scalar products: both stay in a processor's cache.
STRETCH = 1 << 21
TILE = 256
# Parameters whose random numbers are drawn together; part of what a projection is.
DRAWN = 4096


_ONE = np.ones((1, 1), np.float32)


class Group(NamedTuple):
    """Shares that meet: all at one place, or overlapping in ``lo : hi``."""

    lo: int
    hi: int
    place: Any
    shares: tuple[OuterShare, ...]


class Factors:
    """Derivative of `rows` results by a vector of length `size`, for `samples` samples, as a sum of shares."""

    def __init__(self, shares: Sequence[OuterShare], rows: int, samples: int, size: int, dtype: Any):
        self.shares = tuple(shares)
        self.rows, self.samples, self.size = rows, samples, size
        self.dtype = np.dtype(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(s.delta.nbytes + (0 if s.row is None else s.row.nbytes) for s in self.shares)

    @cached_property
    def groups(self) -> list[Group]:
        """The shares by where they lie; groups are disjoint."""
        groups: list[Group] = []
        for share in sorted(self.shares, key=lambda s: s.span):
            lo, hi = share.span
            if groups and lo < groups[-1].hi:
                last = groups.pop()
                same = last.place is not None and last.place == share.place
                groups.append(Group(last.lo, max(last.hi, hi), share.place if same else None, (*last.shares, share)))
            else:
                groups.append(Group(lo, hi, share.place, (share,)))
        return groups

    def of(self, start: int, stop: int) -> Factors:
        """Return those of samples ``start:stop``; nothing is copied."""
        shares = [share.of(slice(start, stop)) for share in self.shares]
        return Factors(shares, self.rows, stop - start, self.size, self.dtype)

    # -- explicit entries ---------------------------------------------------------------------------------------

    def block(self, lo: int, hi: int) -> Array:
        """Return entries ``lo:hi`` as an array ``(V, N, hi - lo)``."""
        out = np.empty((self.rows, self.samples, hi - lo), self.dtype)
        self.write(lo, hi, out)
        return out

    def write(self, lo: int, hi: int, out: Array) -> None:
        """Write entries ``lo:hi`` into `out` ``(V, N, hi - lo)``, which may be a strided view of something larger."""
        meeting = sorted((s for s in self.shares if s.span[0] < hi and s.span[1] > lo), key=lambda s: s.span)
        spans = [(max(lo, s.span[0]), min(hi, s.span[1])) for s in meeting]
        if any(s.entries is not None for s in meeting) or [lo, *(b for _, b in spans)] != [*(a for a, _ in spans), hi]:
            out[...] = 0
            for share, (a, b) in zip(meeting, spans):
                add_share(share, a, b, out[:, :, a - lo : b - lo], lo, out)
            return
        for share, (a, b) in zip(meeting, spans):
            write_share(share, a - share.start, b - share.start, out[:, :, a - lo : b - lo])

    def stretches(self, lo: int, hi: int) -> Iterator[tuple[slice, Array]]:
        """Return entries ``lo:hi`` of all rows and samples, a stretch ``(V, N, c)`` at a time, each with where it lies."""
        step = max(1, STRETCH // (self.rows * self.samples))
        for a in range(lo, hi, step):
            b = min(hi, a + step)
            yield slice(a, b), self.block(a, b)

    # -- what follows from the factors --------------------------------------------------------------------------

    def squared_norms(self) -> Array:
        """Return the squared norm of each sample's derivative, all rows together, ``(N,)``."""
        total = np.zeros(self.samples, self.dtype)
        for group in self.groups:
            if group.place is None or _too_many(group):
                for _, part in self.stretches(group.lo, group.hi):
                    total += np.einsum("vnc,vnc->n", part, part)
                continue
            for i, a in enumerate(group.shares):
                for b in group.shares[: i + 1]:
                    term = _each(a, b)
                    total += term if a is b else 2 * term
        return total

    def dot(
        self, other: Factors | None = None, each: Callable[..., Iterable[Any]] = map, out: Array | None = None
    ) -> Array:
        """Return the scalar products of all pairs of samples, ``(N, M)``; of derivatives of one row.

        Parameters
        ----------
        other : Factors, optional
            By the same vector; itself if not given, which costs half.
        each : callable
            Like ``map``; gets the tiles, which may be computed side by side.
        out : ndarray (N, M), optional
            Where to write them.
        """
        theirs = self if other is None else other
        if out is None:
            out = np.empty((self.samples, theirs.samples), self.dtype)
        terms: dict[tuple[int, int], list[tuple[OuterShare, OuterShare]]] = defaultdict(list)
        explicit: list[tuple[int, int]] = []
        alike = [(g.lo, g.hi) for g in self.groups] == [(g.lo, g.hi) for g in theirs.groups]
        if not alike:
            explicit.append((0, self.size))
        for group, partner in zip(self.groups, theirs.groups) if alike else ():
            if group.place is None or group.place != partner.place:
                explicit.append((group.lo, group.hi))
                continue
            for a in group.shares:
                for b in partner.shares:
                    terms[id(a.delta), id(b.delta)].append((a, b))

        tiles = range(0, self.samples, TILE)
        room = threading.local()

        def tile(start: int) -> None:
            rows = slice(start, min(start + TILE, self.samples))
            columns = slice(start if other is None else 0, theirs.samples)
            if not hasattr(room, "work"):  # fresh memory for every tile would cost as much as its products
                room.work = np.empty((2, min(TILE, self.samples) * theirs.samples), self.dtype)
            target = out[rows, columns]
            if not terms:
                target[...] = 0
            for number, pairs in enumerate(terms.values()):
                _tile(pairs, rows, columns, target, room.work, first=not number)

        for _ in each(tile, tiles):
            pass
        for lo, hi in explicit:
            step = max(1, STRETCH // max(self.samples, theirs.samples))
            for at in range(lo, hi, step):
                mine = self.block(at, min(hi, at + step))[0]
                out += mine @ (mine if other is None else theirs.block(at, min(hi, at + step))[0]).T
        if other is None:  # computed above the diagonal alone
            for _ in each(partial(_mirror, out), tiles):
                pass
        return out

    def sum(self, weights: Array | None = None) -> Array:
        """Return the sum over the samples ``(V, size)``, each times its weight ``(N,)`` if weights are given."""
        total = np.zeros((self.rows, self.size), self.dtype)
        ones = np.ones(self.samples, self.dtype) if weights is None else weights.astype(self.dtype, copy=False)
        for share in self.shares:
            delta = share.delta * ones[None, :, None]
            if share.row is None:
                value = delta.sum(axis=1)
            elif len(share.row) == 1:
                value = (delta.sum(axis=1)[..., None] * share.row).reshape(self.rows, -1)
            else:
                value = np.matmul(np.swapaxes(delta, 1, 2), share.row).reshape(self.rows, -1)
            if share.entries is None:
                lo, hi = share.span
                total[:, lo:hi] += value
            else:
                add_at(total, share.entries, value)
        return total

    def square_sum(self) -> Array:
        """Return the sum of the squared entries over rows and samples ``(size,)``."""
        total = np.zeros(self.size, self.dtype)
        for group in self.groups:
            share = group.shares[0]
            if len(group.shares) == 1 and group.place is not None:
                squares = np.square(np.broadcast_to(share.delta, (self.rows, self.samples, share.delta.shape[2])))
                squares = squares.sum(axis=0)
                if share.row is None:
                    value = squares.sum(axis=0)
                else:
                    x = np.square(np.broadcast_to(share.row, (self.samples, share.width)))
                    value = (squares.T @ x).ravel()
                total[group.lo : group.hi] = value
                continue
            for at, part in self.stretches(group.lo, group.hi):
                total[at] = np.einsum("vnc,vnc->c", part, part)
        return total

    def project(self, ranges: Sequence[tuple[int, int, int]], k: int, seed: int) -> Array:
        """Return random projections ``(N, k)`` of derivatives of one row, a stretch of the vector at a time.

        Parameters
        ----------
        ranges : sequence of (int, int, int)
            The stretches of the vector that are projected: position in the random matrix, first entry, one past the last.
        k : int
        seed : int
            See `projection`.
        """
        out = np.zeros((self.samples, k), self.dtype)
        for position, lo, hi in ranges:
            for number, a in enumerate(range(lo, hi, DRAWN)):
                b = min(hi, a + DRAWN)
                out += self.block(a, b)[0] @ projection(position, number, b - a, k, seed).astype(self.dtype)
        return out


def _too_many(group: Group) -> bool:
    """Whether the cross terms of all pairs of shares take more operations than their sum as an array."""
    _, k, n = group.place
    return len(group.shares) * (k + n) > 2 * k * n and len(group.shares) > 2


def projection(position: int, number: int, rows: int, k: int, seed: int) -> Array:
    """Return `rows` rows of the random matrix of a projection: normal numbers of variance ``1/k``.

    They depend on `seed`, on the variable's `position` among those differentiated by and on the `number` of the block of
    `DRAWN` rows in the variable; not on samples, chunks or workers.
    """
    return np.random.default_rng([seed, position, number]).standard_normal((rows, k)) / np.sqrt(k)


def _each(a: OuterShare, b: OuterShare) -> Array:
    """Return ``⟨δᵃ⊗xᵃ, δᵇ⊗xᵇ⟩`` of each sample, rows together."""
    left = np.einsum("vnk,vnk->n", a.delta, b.delta)
    if a.row is None or b.row is None:
        row = b.row if a.row is None else a.row
        return left if row is None else left * row[:, 0]
    return left * np.vecdot(a.row, b.row)


def _tile(
    pairs: list[tuple[OuterShare, OuterShare]], rows: slice, columns: slice, out: Array, work: Array, first: bool
) -> None:
    """Write, or if it is not the `first`, add ``(Δᵃ Δᵇᵀ) ∘ Σ (Xᵃ Xᵇᵀ)`` to a tile; all pairs have the same two deltas."""
    left = _product(cut(pairs[0][0].delta[0], rows), cut(pairs[0][1].delta[0], columns), work[0])
    wide: Array | None = None
    ones = 0
    for a, b in pairs:
        if a.row is None and b.row is None:
            ones += 1
            continue
        left_row = _ONE if a.row is None else cut(a.row, rows)
        right_row = _ONE if b.row is None else cut(b.row, columns)
        if wide is None:
            wide = _product(left_row, right_row, work[1])
        else:
            wide = wide + left_row @ right_row.T
    if wide is None:
        wide = np.full((1, 1), ones, out.dtype)
    elif ones:
        wide += ones
    if first:
        np.multiply(left, wide, out=out)
    else:
        out += np.multiply(left, wide, out=left) if left.shape == out.shape else left * wide


def _product(a: Array, b: Array, work: Array) -> Array:
    """Return ``a @ b.T``, in the memory of `work`."""
    return np.matmul(a, b.T, out=work[: len(a) * len(b)].reshape(len(a), len(b)))


def _mirror(out: Array, start: int) -> None:
    """Copy what is above the diagonal, in a tile's rows, to below it."""
    stop = min(start + TILE, len(out))
    out[stop:, start:stop] = out[start:stop, stop:].T
    tile = out[start:stop, start:stop]
    below = np.tril_indices(len(tile), -1)
    tile[below] = tile.T[below]
