"""Writes feeds.md, what may be fed to which call, from the kinds and calls that tests try."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

PAGE = Path(__file__).with_name("feeds.md")
sys.path.insert(0, str(PAGE.parents[1] / "tests"))

from feed_table import CALLS, KINDS  # noqa: E402

HEAD = """# What may be fed

Made by `python docs/list_feeds.py` from `tests/feed_table.py`; a test tries every cell, here and on a cluster, and compares this
page. A kind of feed gives the right numbers in every call, ✓, or every call refuses it, –, by one and the same `FeedError`.

* `x` takes numbers `(N, 4)`, `t` class labels of three classes. Numbers are of any bool, integer or float dtype, in any layout.
* Integers `(N,)` or `(N, 1)` become one-hot rows; `(dim,)`, which may be one sample, only for labels of a cross entropy.
* `k` takes integers `(N, 2)`, which pick rows of an `Embedding`'s table of five.
* There are no missing numbers: masked entries, NA, NaN and inf are refused, and so are complex numbers, objects, sparse matrices.
* `fit`, `evaluate` and `per_sample_gradients` leave what dask holds, and memory-mapped files, where they are, and check chunks
  where they are read. A chunk must have the shape and the dtype that its dask array tells. Unknown sizes are found first, and
  chunks computed for that. The other calls bring chunks here. Local engines bring futures here.
* A memory map is read from its file if that is found by its name and is what is mapped; if not, from the map, by the client.
  A file that is written to or replaced after that, before its rows are read, is told.
"""


def line(cells: list[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for refused, names in groupby(
        sorted(KINDS, key=lambda n: KINDS[n].refusal is not None), lambda n: bool(KINDS[n].refusal)
    ):
        columns = ["kind", "fed to", *(f"`{name}`" for name in CALLS), *(["why"] if refused else [])]
        parts += ["", "## Refused" if refused else "## Taken", "", line(columns), line(["---"] * len(columns))]
        for name in names:
            kind = KINDS[name]
            mark = ["–" if refused else "✓"] * len(CALLS)
            parts.append(line([name, f"`{kind.variable}`", *mark, *([f"... {kind.refusal} ..."] if refused else [])]))
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
