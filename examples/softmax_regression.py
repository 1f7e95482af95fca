"""Softmax regression with 10 features and 3 classes: no cluster, one sample at a time, every number in reach.

Run it with ``python examples/softmax_regression.py``; it leaves a picture of the graph, ``computing_graph.png``.
"""

import numpy as np

import flowgrad as fg


def main() -> None:
    """Make data, build the graph, train it with `one_step`, draw it."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 10))
    labels = rng.integers(0, 3, 600)
    samples = centres[labels] + 0.7 * rng.normal(size=(600, 10))

    with fg.Graph(seed=0) as graph:
        x = fg.Variable(10, trainable=False, name="x")
        label = fg.Variable(3, trainable=False, name="label")
        w = [fg.Variable(10, True, name=f"w{i}") for i in range(3)]
        b = [fg.Variable(1, True, name=f"b{i}") for i in range(3)]
        logits = fg.Vectorize(*[w[i] @ x + b[i] for i in range(3)])
        probabilities = fg.SoftMax(logits, name="probabilities")
        loss = fg.CrossEntropyWithSoftMax(logits, label, name="loss")

    optimizer = fg.Adam(graph, loss, learning_rate=0.01, batch_size=16)
    for epoch in range(1, 6):
        losses, correct = [], 0
        for sample, k in zip(samples, labels):
            x.set_value(sample)
            label.set_value(np.eye(3)[k])
            correct += probabilities.forward().argmax() == k
            losses.append(optimizer.one_step())
        print(f"epoch {epoch}  loss {np.mean(losses):.4f}  accuracy {correct / len(samples):.4f}")

    x.set_value(samples[0])
    label.set_value(np.eye(3)[labels[0]])
    print("d loss / d w0 at the first sample:", np.array2string(w[0].backward(loss)[0], precision=4))
    print("the graph is drawn in", graph.draw("computing_graph.png"))


if __name__ == "__main__":
    main()
