"""The largest singular value of a matrix that no worker has as a whole, by power iteration on several workers at once.

Each worker makes its own rows and keeps them. In every step it multiplies them with the vector and back, and the workers add up
what they have directly, without the scheduler: dask has tasks for everything but this.

Run it with ``python examples/power_iteration.py``.
"""

import numpy as np
from distributed import Client, LocalCluster

import flowgrad as fg

WORKERS, ROWS, COLUMNS, STEPS = 2, 2_000, 500, 200


def rows_of(rank):
    """Return the rows of one worker."""
    rng = np.random.default_rng(rank)
    return rng.normal(size=(ROWS, COLUMNS)) + 3 * np.outer(rng.normal(size=ROWS), np.ones(COLUMNS))


def largest(group, steps):
    """Return the largest singular value: R. von Mises, H. Pollaczek-Geiringer, ZAMM 9, 1929."""
    rows = rows_of(group.rank)
    vector = np.ones(COLUMNS)
    for _ in range(steps):
        vector = group.all_reduce(rows.T @ (rows @ vector))
        vector /= np.linalg.norm(vector)
    return float(np.sqrt(group.all_reduce(np.square(rows @ vector).sum())))


def main():
    """Compute it on a cluster, and with NumPy alone."""
    cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        found = fg.gang(client, largest, [STEPS] * WORKERS)
    expected = np.linalg.norm(np.concatenate([rows_of(rank) for rank in range(WORKERS)]), 2)
    print(f"by {WORKERS} workers: {found}, by NumPy: {expected}")


if __name__ == "__main__":
    main()
