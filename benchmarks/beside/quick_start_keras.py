"""The quick start of README.md, softmax regression, in Keras."""

import keras
import numpy as np

keras.utils.set_random_seed(0)
net = keras.Sequential([keras.Input((10,)), keras.layers.Dense(3)])
samples = np.random.default_rng(0).normal(size=(600, 10))
labels = samples[:, :3].argmax(axis=1)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
net.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
history = net.fit(samples, labels, 32, 5, verbose=0, validation_data=(samples, labels))
print(history.history["val_accuracy"][-1])
