"""The net and the training of ``examples/attention.py`` in Keras."""

import keras
import numpy as np
from keras import layers, ops

from examples.attention import BATCH, EPOCHS, draw
from flowgrad.data import load_digits


def build() -> tuple[keras.Model, keras.Model]:
    """Return the net, and how much each row looks at each row."""
    x = keras.Input((64,))
    rows = layers.Reshape((8, 8))(x)
    q, k, v = (layers.Dense(16, use_bias=False)(rows) for _ in range(3))
    weights = ops.softmax(ops.matmul(q, ops.swapaxes(k, 1, 2)) / 4)
    found = layers.Concatenate()([rows, ops.matmul(weights, v)])
    hidden = layers.Dense(64, activation="relu")(layers.Flatten()(found))
    return keras.Model(x, layers.Dense(10)(hidden)), keras.Model(x, weights)


def main() -> None:
    """Train it, draw what it looks at, and say how well it does."""
    keras.utils.set_random_seed(0)
    data = load_digits()
    net, weights = build()
    rate = keras.optimizers.schedules.CosineDecay(0.005, EPOCHS * len(data.x_train) // BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    net.fit(data.x_train, data.y_train, BATCH, EPOCHS, verbose=0)
    some = np.array([np.flatnonzero(data.y_test == digit)[0] for digit in range(10)])
    draw(data.x_test[some], weights.predict(data.x_test[some], verbose=0), "attention.png")
    _, accuracy = net.evaluate(data.x_test, data.y_test, verbose=0)
    print(f"accuracy on the test digits {accuracy:.4f}")


if __name__ == "__main__":
    main()
