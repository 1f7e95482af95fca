"""The net and the training of ``examples/first_symbol.py`` in Keras."""

import keras
import numpy as np
from keras import layers

from examples.first_symbol import BATCH, EPOCHS, NOISE, SEQUENCES, SYMBOLS, UNITS, sequences


def build() -> keras.Model:
    """Return the net."""
    bias = keras.initializers.Constant(np.repeat([0.0, 3.0, 0.0, 0.0], UNITS))
    memory = layers.LSTM(UNITS, bias_initializer=bias, unit_forget_bias=False)
    return keras.Sequential([keras.Input((1 + NOISE, SYMBOLS)), memory, layers.Dense(SYMBOLS)])


def main() -> None:
    """Train on some sequences, ask about others."""
    keras.utils.set_random_seed(0)
    net = build()
    x, label = sequences(SEQUENCES, seed=1)
    new = sequences(2_000, seed=2)
    rate = keras.optimizers.schedules.CosineDecay(0.005, EPOCHS * SEQUENCES // BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    net.fit(x, label, BATCH, EPOCHS, verbose=2, validation_data=new)


if __name__ == "__main__":
    main()
