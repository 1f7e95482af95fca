"""A LeNet on the handwritten digits of MNIST: two convolutions with pooling, then two layers; about 99 % after five epochs.

Run it with ``python examples/lenet.py``; the architecture is that of Y. LeCun and others, *Gradient-based learning applied to
document recognition*, 1998, with today's activations.
"""

import flowgrad as fg
from flowgrad.data import load_mnist

EPOCHS, BATCH = 5, 32


def build() -> fg.Graph:
    """Return the graph; its nodes are there by name."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((1, 28, 28), trainable=False, name="x")
        label = fg.Variable(10, trainable=False, name="label")
        h = fg.layers.conv2d(x, 6, 5, activation="relu", name="c0")
        h = fg.layers.conv2d(fg.layers.max_pool2d(h, 2), 16, 5, padding="valid", activation="relu", name="c1")
        h = fg.layers.dense(fg.layers.max_pool2d(h, 2), 120, "relu", name="h0")
        logits = fg.layers.dense(fg.layers.dense(h, 84, "relu", name="h1"), 10, name="logits")
        fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    return graph


def main() -> None:
    """Train it, and say how well it does."""
    data = load_mnist()
    graph = build()
    print(graph.summary())
    rate = fg.CosineDecay(0.002, steps=EPOCHS * len(data.x_train) // BATCH)
    adam = fg.Adam(graph, graph["loss"], learning_rate=rate, batch_size=BATCH)
    trainer = fg.Trainer(adam, fg.Engine("threads", dtype="float32"))
    test = {"x": data.x_test, "label": data.y_test}
    print(trainer.fit({"x": data.x_train, "label": data.y_train}, epochs=EPOCHS, validation=test))


if __name__ == "__main__":
    main()
