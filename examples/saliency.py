"""To which pixels are the logits sensitive? Rows of the Jacobian of the logits by the input, as pictures.

A pixel counts as much as its grey varies among all digits: one that is always white is of no consequence. Red pixels speak for a
class when they are inked, blue ones against it.

Run it with ``python examples/saliency.py``; it leaves ``saliency.png``. Needs the extra ``viz``.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from influence import train

import flowgrad as fg
from flowgrad.data import load_mnist

SHOWN = (3, 4, 7, 9)


def main(path: str = "saliency.png") -> None:
    """Train, take the Jacobian at some test digits, draw it."""
    data = load_mnist(np.float32)
    engine = fg.Engine("threads")
    x, _, logits, _ = train(engine, data.x_train[:20_000], data.y_train[:20_000])
    guess = engine.forward(logits, {x: data.x_test}).argmax(axis=1)
    right = guess == data.y_test
    rows = [np.flatnonzero(right & (data.y_test == c))[1] for c in SHOWN]
    jacobian = engine.jacobian(logits, x, {x: data.x_test[rows]})  # (4, 10, 784)
    centred = jacobian - jacobian.mean(axis=1, keepdims=True)  # what all logits share decides nothing
    centred *= data.x_train[:20_000].std(axis=0)

    figure, axes = plt.subplots(len(rows), 11, figsize=(10.5, 4.1))
    for line, row, maps in zip(axes, rows, centred):
        line[0].imshow(data.x_test[row].reshape(28, 28), cmap="gray_r")
        limit = np.quantile(np.abs(maps), 0.995)
        for c, (axis, picture) in enumerate(zip(line[1:], maps.reshape(10, 28, 28))):
            axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.contour(data.x_test[row].reshape(28, 28), levels=[0.5], colors="black", linewidths=0.6)
            own = c == data.y_test[row]
            for spine in axis.spines.values():
                spine.set(visible=True, linewidth=2 if own else 0.5, color="black" if own else "lightgray")
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_title("digit", fontsize=10)
    for c, axis in enumerate(axes[0, 1:]):
        axis.set_title(f"logit {c}", fontsize=10)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.92, wspace=0.06, hspace=0.06)
    figure.savefig(path, dpi=80)
    print(f"the sensitivity of each logit to each pixel is drawn in {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
