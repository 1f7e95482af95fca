"""What tells data from other data at no cost that shows: some of its rows, or the names of its chunks."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import Any

import numpy as np

from flowgrad.graph import Variable
from flowgrad.typing import Array

from .check import Feeds, rows_of
from .chunks import Chunked, FileRows

# Rows of a feed that are compared, spread evenly.
ROWS = 1024


def describe_data(feeds: Feeds, used: Collection[Any], secret: bool) -> list[dict[str, Any]]:
    """Return plain values that tell the feeds for variables in `used` from others, in the order of these.

    ``rows`` stands for values as they are fed, whatever held them. Those of a dask array could be had only by computing it:
    ``chunks`` stands for the names of its chunks, which may be drawn anew for the same data. With `secret` nothing is said of
    values: who knows all samples but one could find that one by it.
    """
    data = []
    for v, source in sorted(feeds.arrays.items(), key=lambda item: item[0].index):
        if v not in used:
            continue
        about: dict[str, Any] = {"name": v.name, "shape": [feeds.samples, v.dim], "dtype": feeds.dtype.name}
        data.append(about if secret else about | _content(v, source))
    return data


def _content(v: Variable, source: Any) -> dict[str, str]:
    digest = blake2b(digest_size=16)
    places = np.unique(np.linspace(0, len(source) - 1, min(len(source), ROWS)).astype(int))
    if not isinstance(source, Chunked):
        digest.update(_little(source[places]).data)
        return {"rows": digest.hexdigest()}
    if not all(isinstance(chunk, FileRows) for chunk in source.chunks):
        names = [getattr(chunk, "key", None) for chunk in source.chunks]
        digest.update(f"{source.starts} {names}".encode())
        return {"chunks": digest.hexdigest()}
    for chunk, start, stop in zip(source.chunks, source.starts, source.starts[1:]):
        inside = places[(places >= start) & (places < stop)] - start
        if len(inside):
            digest.update(_little(rows_of(chunk, source.told, inside, source.form, start, stop - start, "")).data)
    return {"rows": digest.hexdigest()}


def _little(rows: Array) -> Array:
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
