"""A multi-layer perceptron: a layer is a matrix times a vector, a bias, and a function that bends."""

import flowgrad as fg

with fg.Graph(seed=0) as graph:
    x = fg.Variable(4, [1.0, -0.5, 2.0, 0.3], trainable=False, name="x")
    h = fg.layers.dense(x, 3, "tanh", name="hidden")
    p = fg.layers.dense(h, 2, "softmax", name="p")

print("p =", p.forward())
print("Jacobian of p by x:", x.backward(p), sep="\n")
graph.draw("07_multilayer_perceptron.png")
print(graph.summary())
