"""The nets and the training of ``examples/tables.py`` in Keras."""

import keras
import numpy as np
from keras import layers, ops

from examples.tables import BATCH, BINS, COLUMNS, DIM, EPOCHS, categories, main


class Pairs(layers.Layer):
    """What pairs of columns add to the score of a factorization machine."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Make the weights."""
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.V = self.add_weight(shape=(shape[-1], 8), initializer=small)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Return half of the square of the sum, without the sum of squares."""
        both = ops.matmul(x, self.V) ** 2 - ops.matmul(x * x, self.V * self.V)
        return 0.5 * ops.sum(both, 1, keepdims=True)


def embedding(dim: int, deviation: float) -> layers.Embedding:
    """Return a table of numbers for each category, small at first."""
    small = keras.initializers.RandomNormal(stddev=deviation)
    return layers.Embedding(BINS * COLUMNS, dim, small)


def machine(x: keras.KerasTensor, k: keras.KerasTensor) -> keras.KerasTensor:
    """Return the score of a factorization machine of the columns."""
    return layers.Dense(1)(x) + Pairs()(x)


def wide_and_deep(x: keras.KerasTensor, k: keras.KerasTensor) -> keras.KerasTensor:
    """Return a score of the columns as they are, and of a net that reads embeddings of their categories."""
    return layers.Dense(1)(x) + layers.Dense(1)(layers.Dense(32, "relu")(layers.Flatten()(embedding(DIM, 0.05)(k))))


def deep_fm(x: keras.KerasTensor, k: keras.KerasTensor) -> keras.KerasTensor:
    """Return the score of a factorization machine of categories, and of a net that reads the same embeddings."""
    e = embedding(DIM, 0.05)(k)
    pairs = 0.5 * ops.sum(ops.sum(e, 1) ** 2 - ops.sum(e * e, 1), 1, keepdims=True)
    return ops.sum(embedding(1, 0.0)(k), 1) + pairs + layers.Dense(1)(layers.Dense(32, "relu")(layers.Flatten()(e)))


NETS = {"factorization machine": machine, "wide & deep": wide_and_deep, "DeepFM": deep_fm}


def predicted(net: str, x: np.ndarray, label: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Train on rows that are known, and return the probabilities of new ones."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((COLUMNS,)), keras.Input((COLUMNS,), dtype="int32")
    model = keras.Model(inputs, NETS[net](*inputs))
    rate = keras.optimizers.schedules.CosineDecay(0.003, EPOCHS * len(x) // BATCH)
    model.compile(keras.optimizers.Adam(rate, weight_decay=0.001), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit((x, categories(x, x)), label, BATCH, EPOCHS, verbose=0)
    scores = model.predict((new, categories(x, new)), verbose=0)
    return ops.convert_to_numpy(ops.sigmoid(scores))[:, 0]


if __name__ == "__main__":
    main(predicted)
