"""Nets for tables against logistic regression: a factorization machine, wide & deep, and DeepFM.

Run it with ``python examples/tables.py``. The table is scikit-learn's digits, 1,797 rows of 64 columns; the question is whether
a digit is odd, which no column answers by itself: pairs of them do. What is compared is the mean log loss over the same five
stratified splits, with logistic regression on the columns and, one-hot, on the categories that embeddings are of.

See S. Rendle, *Factorization machines*, 2010; H.-T. Cheng and others, *Wide & deep learning*, 2016; H. Guo and others, *DeepFM*,
2017.
"""

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

import flowgrad as fg

COLUMNS, BINS, DIM = 64, 4, 4
EPOCHS, BATCH = 30, 32


def categories(known: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return in which quarter of what is known each entry lies, ``(N, COLUMNS)``; columns have numbers of their own."""
    edges = np.quantile(known, np.arange(1, BINS) / BINS, axis=0)
    return (x[:, None] > edges).sum(axis=1) + BINS * np.arange(COLUMNS)


def machine(x: fg.Node, k: fg.Node) -> fg.Node:
    """Return the score of a factorization machine of the columns."""
    return fg.layers.factorization_machine(x, 8, name="score")


def wide_and_deep(x: fg.Node, k: fg.Node) -> fg.Node:
    """Return a score of the columns as they are, and of a net that reads embeddings of their categories."""
    e = fg.layers.embedding(k, BINS * COLUMNS, DIM, name="e")
    return fg.layers.wide_and_deep(x, e.reshape(COLUMNS * DIM), [32], name="score")


def deep_fm(x: fg.Node, k: fg.Node) -> fg.Node:
    """Return the score of a factorization machine of categories, and of a net that reads the same embeddings."""
    e = fg.layers.embedding(k, BINS * COLUMNS, DIM, name="e")
    total = fg.Constant(np.ones((1, COLUMNS))) @ e
    pairs = 0.5 * (fg.Sum(total * total) - fg.Sum(e * e))
    single = fg.Sum(fg.layers.embedding(k, BINS * COLUMNS, 1, "zeros", name="w"))
    return fg.Add(single, pairs, fg.layers.dense(fg.layers.dense(e, 32, "relu"), 1), name="score")


NETS = {"factorization machine": machine, "wide & deep": wide_and_deep, "DeepFM": deep_fm}


def build(net: str) -> fg.Graph:
    """Return the graph of a net; its nodes are there by name."""
    with fg.Graph(seed=0) as graph:
        x, k = fg.Variable(COLUMNS, trainable=False, name="x"), fg.Variable(COLUMNS, trainable=False, name="k")
        label = fg.Variable(1, trainable=False, name="label")
        fg.Logistic(NETS[net](x, k), name="p")
        fg.LogisticCrossEntropy(graph["score"], label, name="loss")
    return graph


def predicted(net: str, x: np.ndarray, label: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Train on rows that are known, and return the probabilities of new ones."""
    graph = build(net)
    rate = fg.CosineDecay(0.003, steps=EPOCHS * len(x) // BATCH)
    adam = fg.Adam(graph, graph["loss"], learning_rate=rate, weight_decay=0.001, batch_size=BATCH)
    feeds = {"x": x, "k": categories(x, x), "label": label}
    fg.Trainer(adam, fg.Engine("threads")).fit(feeds, epochs=EPOCHS)
    return fg.Engine("threads").forward(graph["p"], {"x": new, "k": categories(x, new)})


def main(predicted: Callable[..., np.ndarray] = predicted) -> dict[str, float]:
    """Print and return the log loss of each, the mean over all splits."""
    digits = load_digits()
    x, label = digits.data / 16, digits.target % 2
    losses: dict[str, list[float]] = {}
    for known, new in StratifiedKFold(5, shuffle=True, random_state=0).split(x, label):
        inputs = {"columns": x, "categories": np.eye(BINS * COLUMNS)[categories(x[known], x)].sum(axis=1)}
        found = {}
        for what, z in inputs.items():
            regression = LogisticRegression(max_iter=1000).fit(z[known], label[known])
            found[f"regression on {what}"] = regression.predict_proba(z[new])[:, 1]
        found |= {net: predicted(net, x[known], label[known], x[new]) for net in NETS}
        for name, p in found.items():
            losses.setdefault(name, []).append(log_loss(label[new], np.clip(p, 1e-7, 1 - 1e-7)))
    means = {name: float(np.mean(each)) for name, each in losses.items()}
    for name, mean in means.items():
        print(f"{name:<24} log loss {mean:.4f}")
    return means


if __name__ == "__main__":
    main()
