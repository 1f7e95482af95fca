"""Attention on handwritten digits: each row of an image looks at the rows that tell it something, and one can see at which.

Run it with ``python examples/attention.py``; the digits are scikit-learn's, 8 x 8. It leaves a picture, ``attention.png``.
"""

import matplotlib.pyplot as plt
import numpy as np

import flowgrad as fg
from flowgrad.data import load_digits

EPOCHS, BATCH = 40, 32


def build() -> fg.Graph:
    """Return the graph; its nodes are there by name."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((8, 8), trainable=False, name="x")
        label = fg.Variable(10, trainable=False, name="label")
        found = fg.layers.attention(x, 16, name="rows")
        hidden = fg.layers.dense(fg.Concat(x, found, axis=1), 64, "relu", name="h0")
        logits = fg.layers.dense(hidden, 10, name="logits")
        fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    return graph


def draw(images: np.ndarray, weights: np.ndarray, path: str) -> None:
    """Draw images, and below each how much each of its rows looks at each row."""
    figure, axes = plt.subplots(2, len(images), figsize=(1.6 * len(images), 3.6), layout="constrained")
    for (above, below), image, looked in zip(axes.T, images, weights):
        above.imshow(image.reshape(8, 8), cmap="gray_r")
        below.imshow(looked.reshape(8, 8), cmap="viridis", vmin=0)
        above.set_axis_off()
        below.set_xticks([])
        below.set_yticks([])
    axes[1, 0].set_ylabel("row")
    axes[1, 0].set_xlabel("looks at row")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train it, draw what it looks at, and say how well it does."""
    data = load_digits()
    graph = build()
    adam = fg.Adam(graph, graph["loss"], learning_rate=fg.CosineDecay(0.005, EPOCHS * len(data.x_train) // BATCH))
    trainer = fg.Trainer(adam, fg.Engine("threads", dtype="float32"))
    test = {"x": data.x_test, "label": data.y_test}
    trainer.fit({"x": data.x_train, "label": data.y_train}, epochs=EPOCHS)
    some = np.array([np.flatnonzero(data.y_test == digit)[0] for digit in range(10)])
    draw(data.x_test[some], trainer.predict(graph["rows.weights"], {"x": data.x_test[some]}), "attention.png")
    print("accuracy on the test digits {accuracy:.4f}".format(**trainer.evaluate(test)))


if __name__ == "__main__":
    main()
