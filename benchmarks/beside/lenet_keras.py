"""The net and the training of ``examples/lenet.py`` in Keras."""

import keras
from keras import layers

from examples.lenet import BATCH, EPOCHS
from flowgrad.data import load_mnist


def build() -> keras.Model:
    """Return the net."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10),
        ]
    )


def main() -> None:
    """Train it, and say how well it does."""
    keras.utils.set_random_seed(0)
    data = load_mnist()
    net = build()
    net.summary()
    rate = keras.optimizers.schedules.CosineDecay(0.002, EPOCHS * len(data.x_train) // BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    net.fit(data.x_train, data.y_train, BATCH, EPOCHS, verbose=2, validation_data=(data.x_test, data.y_test))


if __name__ == "__main__":
    main()
