"""A variational autoencoder of handwritten digits: it learns eight numbers for each, and draws digits that nobody wrote.

Run it with ``python examples/vae.py``; the digits are scikit-learn's, 8 x 8. It leaves a picture, ``vae.png``. See D. Kingma and
M. Welling, *Auto-encoding variational Bayes*, ICLR 2014.
"""

import matplotlib.pyplot as plt
import numpy as np

import flowgrad as fg
from flowgrad.data import load_digits

EPOCHS, BATCH, CODES = 60, 32, 8


def build() -> fg.Graph:
    """Return the graph; its nodes are there by name."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(64, trainable=False, name="x")
        h = fg.layers.dense(x, 128, "relu", name="h0")
        mean, spread = fg.layers.dense(h, CODES, name="mean"), fg.layers.dense(h, CODES, name="spread")
        W, b = fg.Variable((128, CODES), "he", name="d0.W"), fg.Variable(128, "zeros", name="d0.b")
        V, c = fg.Variable((64, 128), "glorot", name="d1.W"), fg.Variable(64, "zeros", name="d1.b")

        def decoded(code: fg.Node) -> fg.Node:
            return V @ fg.ReLU(W @ code + b) + c

        seen = decoded(mean + fg.Exp(0.5 * spread) * fg.Noise(CODES))
        missing = fg.Sum(fg.LogisticCrossEntropy(seen, x))
        apart = 0.5 * fg.Sum(fg.Exp(spread) + mean**2 - spread - 1)
        fg.Add(missing, apart, name="loss")
        fg.Logistic(decoded(fg.Variable(CODES, trainable=False, name="code")), name="picture")
    return graph


def draw(rows: list[np.ndarray], path: str) -> None:
    """Draw rows of images."""
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(8, 0.8 * len(rows)), layout="constrained")
    for row, images in zip(axes, rows):
        for axis, image in zip(row, images):
            axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train it, draw digits, and say how many nats a test digit takes: an upper bound of minus its log-likelihood."""
    data = load_digits()
    train, test = ((x > 0.5).astype(float) for x in (data.x_train, data.x_test))  # ink or none
    graph, engine = build(), fg.Engine("threads", dtype="float32")
    adam = fg.Adam(graph, graph["loss"], learning_rate=fg.CosineDecay(0.003, EPOCHS * len(train) // BATCH))
    fg.Trainer(adam, engine).fit({"x": train}, epochs=EPOCHS)
    some = test[[np.flatnonzero(data.y_test == digit)[0] for digit in range(10)]]
    codes = [engine.forward(graph["mean"], {"x": some}), *np.random.default_rng(0).normal(size=(4, 10, CODES))]
    draw([some, *(engine.forward(graph["picture"], {"code": code}) for code in codes)], "vae.png")
    keys = fg.draw_keys(seed=1, update=1, first=0, count=len(test))
    nats = engine.forward(graph["loss"], {"x": test, "draws": keys}).mean()
    ink = np.clip(train.mean(axis=0), 1e-3, 1 - 1e-3)
    alone = -(test * np.log(ink) + (1 - test) * np.log(1 - ink)).sum(axis=1).mean()
    print(f"nats of a test digit: {alone:.1f} by the mean of each pixel, by the autoencoder {nats:.1f}")


if __name__ == "__main__":
    main()
