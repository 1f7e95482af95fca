"""Two parents: a node has a Jacobian by each of them."""

import flowgrad as fg

with fg.Graph() as graph:
    w = fg.Variable(3, [0.5, -1.0, 2.0], name="w")
    x = fg.Variable(3, [1.0, 2.0, 3.0], trainable=False, name="x")
    a = fg.Dot(w, x, name="a")

print("a = w @ x =", a.forward())
print("Jacobian of a by w, which is x:", w.backward(a))
print("Jacobian of a by x, which is w:", x.backward(a))
graph.draw("02_two_parents.png")
