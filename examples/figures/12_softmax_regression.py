"""Softmax regression with 10 features and 3 classes, and the loss that it is trained by."""

import numpy as np

import flowgrad as fg

with fg.Graph(seed=0) as graph:
    x = fg.Variable(10, np.linspace(-1, 1, 10), trainable=False, name="x")
    label = fg.Variable(3, [0.0, 1.0, 0.0], trainable=False, name="label")
    a = fg.layers.dense(x, 3, per_neuron=True, name="a")
    p = fg.SoftMax(a, name="p")
    loss = fg.CrossEntropyWithSoftMax(a, label, name="loss")

print("p =", p.forward(), "loss =", loss.forward())
print("Jacobian of the loss by a, which is p - label:", a.backward(loss))
graph.draw("12_softmax_regression.png")
