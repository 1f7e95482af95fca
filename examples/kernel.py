"""The Gram matrix of per-sample gradients, the empirical neural tangent kernel, of 1,000 digits sorted by class.

The scalar product of two digits' gradients says what a step on one does to the loss of the other: red helps, blue hurts. It
is shown as the cosine. Digits of one class help each other from the beginning; what is left after training are the classes
that are mistaken for each other. The matrix comes from factors, no gradient is built.

Run it with ``python examples/kernel.py``; it leaves ``kernel.png``. Needs the extra ``viz``.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from influence import net

import flowgrad as fg
from flowgrad.data import load_mnist


def cosines(engine: fg.Engine, target: fg.Node, feeds: dict) -> np.ndarray:
    """Return the cosines between the gradients of all pairs of samples."""
    gradients = engine.per_sample_gradients(target, feeds)
    norms = gradients.norms()
    return gradients.gram() / np.outer(norms, norms)


def main(path: str = "kernel.png") -> None:
    """Compute the matrix before and after training, draw both."""
    data = load_mnist(np.float32)
    rows = np.concatenate([np.flatnonzero(data.y_test == c)[:100] for c in range(10)])
    engine = fg.Engine("threads")
    graph, x, label, _, loss = net()
    feeds = {x: data.x_test[rows], label: data.y_test[rows]}
    before = cosines(engine, loss, feeds)
    fg.Trainer(fg.Adam(graph, loss, learning_rate=0.002, batch_size=64), engine).fit(
        {x: data.x_train[:20_000], label: data.y_train[:20_000]}, epochs=3
    )
    after = cosines(engine, loss, feeds)

    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.5), layout="constrained")
    for axis, matrix, title in zip(axes, (before, after), ("before training", "after three epochs")):
        shown = matrix.reshape(250, 4, 250, 4).mean(axis=(1, 3))
        drawn = axis.imshow(shown, cmap="RdBu_r", vmin=-0.6, vmax=0.6, extent=(0, 10, 10, 0), interpolation="nearest")
        axis.set_xticks(np.arange(10) + 0.5, range(10))
        axis.set_yticks(np.arange(10) + 0.5, range(10))
        axis.tick_params(length=0)
        axis.set_title(title)
    axes[0].set_ylabel("digits by class, 100 each")
    figure.colorbar(drawn, ax=axes, shrink=0.86, label="cosine between gradients")
    figure.savefig(path, dpi=75)
    print(f"the Gram matrices are drawn in {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
