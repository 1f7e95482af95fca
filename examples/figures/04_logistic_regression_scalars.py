"""Logistic regression, every number a node of its own: two features, two weights, one bias, one probability."""

import flowgrad as fg

with fg.Graph() as graph:
    x1 = fg.Variable(1, [0.5], trainable=False, name="x1")
    x2 = fg.Variable(1, [-1.5], trainable=False, name="x2")
    w1, w2 = fg.Variable(1, [1.0], name="w1"), fg.Variable(1, [-0.4], name="w2")
    b = fg.Variable(1, [0.2], name="b")
    weighted = fg.Multiply(w1, x1, name="w1x1"), fg.Multiply(w2, x2, name="w2x2")
    a = fg.Add(*weighted, b, name="a")
    p = fg.Logistic(a, name="p")

print("p =", p.forward())
for variable in (w1, w2, b):
    print(f"by {variable.name}:", variable.backward(p))
graph.draw("04_logistic_regression_scalars.png")
