"""Logistic regression again, with vectors: one `Dot` takes all features and all weights at once."""

import flowgrad as fg

with fg.Graph() as graph:
    x = fg.Variable(2, [0.5, -1.5], trainable=False, name="x")
    w = fg.Variable(2, [1.0, -0.4], name="w")
    b = fg.Variable(1, [0.2], name="b")
    a = fg.Add(fg.Dot(w, x, name="wx"), b, name="a")
    p = fg.Logistic(a, name="p")

print("p =", p.forward())
print("by w:", w.backward(p), "by b:", b.backward(p))
graph.draw("06_logistic_regression_vectors.png")
