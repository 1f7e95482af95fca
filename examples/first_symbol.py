"""An LSTM that remembers: which of ten symbols came first, asked after forty steps of noise.

Run it with ``python examples/first_symbol.py``. With tasks of this kind S. Hochreiter and J. Schmidhuber showed in 1997 what a long
short-term memory is for: a plain recurrent net forgets in so many steps.
"""

import numpy as np

import flowgrad as fg

SYMBOLS, NOISE, UNITS = 10, 40, 32
SEQUENCES, EPOCHS, BATCH = 10_000, 14, 50


def sequences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences ``(count, 1 + NOISE, SYMBOLS)``, a symbol and then noise, and which symbol it was."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, SYMBOLS, count)
    x = rng.normal(0, 0.3, (count, 1 + NOISE, SYMBOLS)).astype(np.float32)
    x[:, 0] = np.eye(SYMBOLS)[first]
    return x, first


def build() -> fg.Graph:
    """Return the graph; its nodes are there by name."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable((1 + NOISE, SYMBOLS), trainable=False, name="x")
        label = fg.Variable(SYMBOLS, trainable=False, name="label")
        logits = fg.layers.dense(fg.layers.lstm(x, UNITS, name="memory"), SYMBOLS, name="logits")
        fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    # Of what is remembered 0.95 is left after a step at first; with a bias of 1 it would be 0.73, next to nothing after forty.
    graph["memory.b"].set_value(np.repeat([0.0, 3.0, 0.0, 0.0], UNITS))
    return graph


def main() -> None:
    """Train on some sequences, ask about others."""
    graph = build()
    x, label = sequences(SEQUENCES, seed=1)
    new, answer = sequences(2_000, seed=2)
    rate = fg.CosineDecay(0.005, steps=EPOCHS * SEQUENCES // BATCH)
    adam = fg.Adam(graph, graph["loss"], learning_rate=rate, batch_size=BATCH)
    trainer = fg.Trainer(adam, fg.Engine("threads", dtype="float32"))
    print(trainer.fit({"x": x, "label": label}, epochs=EPOCHS, validation={"x": new, "label": answer}))


if __name__ == "__main__":
    main()
