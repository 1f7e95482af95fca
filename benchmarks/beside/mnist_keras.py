"""The net and the training of ``examples/mnist.py`` in Keras, in one process."""

import keras
from keras import layers

from flowgrad.data import load_mnist


def main() -> None:
    """Build the net, train it, look at it."""
    keras.utils.set_random_seed(0)
    data = load_mnist().head(55_000)
    net = keras.Sequential([keras.Input((784,)), layers.Dense(90, activation="relu"), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    net.fit(data.x_train, data.y_train, 32, 6, verbose=2, validation_data=(data.x_test, data.y_test))
    guess = net.predict(data.x_test[:10], verbose=0).argmax(axis=1)
    print("the first ten test images:", *data.y_test[:10])
    print("                predicted:", *guess)
    net.save("mnist.keras")


if __name__ == "__main__":
    main()
