"""The training digits that push a misclassified test digit to its wrong class.

The influence of a training digit on a test digit is the scalar product of their gradients: how much a small step on the first
changes the loss of the second. 20,000 training gradients of 71,560 entries each would take 6 GB; as factors they take 70 MB.

Run it with ``python examples/influence.py``; it leaves ``influence.png``. Needs the extra ``viz``.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

import flowgrad as fg
from flowgrad.data import load_mnist

TRAINED = 20_000


def net() -> tuple[fg.Graph, fg.Variable, fg.Variable, fg.Node, fg.Node]:
    """Return a 784-90-10 net: graph, inputs, labels, logits and loss."""
    with fg.Graph(seed=0) as graph:
        x, label = fg.Variable(784, trainable=False, name="x"), fg.Variable(10, trainable=False, name="label")
        hidden = fg.ReLU(
            fg.MatVec(fg.Variable(784 * 90, graph.rng.normal(0, 0.05, 784 * 90)), x) + fg.Variable(90, True)
        )
        logits = fg.MatVec(fg.Variable(900, graph.rng.normal(0, 0.1, 900)), hidden) + fg.Variable(10, True)
        loss = fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    return graph, x, label, logits, loss


def train(engine: fg.Engine, images: np.ndarray, classes: np.ndarray):
    """Return a net after three epochs."""
    graph, x, label, logits, loss = net()
    optimizer = fg.Adam(graph, loss, learning_rate=0.002, batch_size=64)
    fg.Trainer(optimizer, engine).fit({x: images, label: classes}, epochs=3)
    return x, label, logits, loss


def main(path: str = "influence.png") -> None:
    """Train, find a misclassified test digit of each of three kinds, draw who helped and who hurt."""
    data = load_mnist(np.float32)
    images, classes = data.x_train[:TRAINED], data.y_train[:TRAINED]
    engine = fg.Engine("threads")
    x, label, logits, loss = train(engine, images, classes)

    guess = engine.forward(logits, {x: data.x_test})
    guess = np.exp(guess - guess.max(axis=1, keepdims=True))
    guess /= guess.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero((guess.argmax(axis=1) != data.y_test) & (guess.max(axis=1) < 0.9))
    chosen = [next(i for i in wrong if data.y_test[i] == c) for c in (4, 5, 9)]

    of_test = engine.per_sample_gradients(loss, {x: data.x_test[chosen], label: data.y_test[chosen]})
    of_training = engine.per_sample_gradients(loss, {x: images, label: classes})
    influence = of_test.dot(of_training) / of_training.norms()  # a huge gradient alone is no kinship

    figure, axes = plt.subplots(len(chosen), 10, figsize=(10, 3.9), width_ratios=[1.15, *[1] * 4, 0.35, *[1] * 4])
    for row, test, along in zip(axes, chosen, influence):
        order = np.argsort(along)
        truth, said = data.y_test[test], guess[test].argmax()
        panel(row[0], data.x_test[test], f"a {truth}, taken\nfor a {said}", "black")
        row[5].axis("off")
        for axis, k in zip(row[1:5], order[:-5:-1]):
            panel(axis, images[k], f"{classes[k]}", "tab:blue")
        for axis, k in zip(row[6:], order[:4]):
            panel(axis, images[k], f"{classes[k]}", "tab:red")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.8, wspace=0.15, hspace=0.45)
    figure.text(0.3, 0.93, "training digits that pull it to its class", color="tab:blue", ha="center", fontsize=11)
    figure.text(0.78, 0.93, "that push it to another one", color="tab:red", ha="center", fontsize=11)
    figure.text(0.065, 0.93, "test digit", ha="center", fontsize=11)
    figure.savefig(path, dpi=90)
    print(f"the most influential training digits are drawn in {path}")


def panel(axis: plt.Axes, image: np.ndarray, title: str, color: str) -> None:
    """Draw one digit."""
    axis.imshow(image.reshape(28, 28), cmap="gray_r")
    axis.set_title(title, fontsize=9, color=color, pad=3)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(color)


if __name__ == "__main__":
    main(*sys.argv[1:])
